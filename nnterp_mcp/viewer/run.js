/** A run as tables that are read page by page, through whoever answers `read_run`. */

const PAGE = 500;
const PARTS = "Parts for read_run: ";

export class Run {
  /**
   * @param {string} id the run's id: its tool's name, a hyphen and letters
   * @param {(parameters: object) => Promise<object>} read answers `read_run` with structured content
   */
  constructor(id, read) {
    this.id = id;
    this.read = read;
    this.kept = new Map();
  }

  get tool() {
    return this.id.slice(0, this.id.lastIndexOf("-"));
  }

  /** The answer as its tool gave it; a run that goes on answers with its state. */
  answer() {
    return this.read({ run_id: this.id, part: "answer" });
  }

  /** Some rows of a part as objects, and how many there are. Every page is asked for once. */
  page(part, { offset = 0, limit = PAGE, ...choice } = {}) {
    const parameters = { run_id: this.id, part, offset, limit, format: "json", ...choice };
    const key = JSON.stringify(parameters);
    if (!this.kept.has(key)) {
      const asked = this.read(parameters).then(asObjects);
      asked.catch(() => this.kept.delete(key));
      this.kept.set(key, asked);
    }
    return this.kept.get(key);
  }

  /** All rows of a part that are asked for, or as many as `most`, a page of `size` rows at a time. */
  async rows(part, { most = Infinity, offset = 0, size = PAGE, ...choice } = {}) {
    const rows = [];
    for (;;) {
      const limit = Math.min(size, PAGE, most - rows.length);
      const page = await this.page(part, { ...choice, offset: offset + rows.length, limit });
      rows.push(...page.rows);
      if (page.rows.length === 0 || rows.length >= Math.min(most, page.total - offset)) return rows;
    }
  }

  /** The figure of the run; one without panels where there is none. */
  async figure() {
    const [row] = await this.rows("figure");
    return JSON.parse(row.figure);
  }

  /** What is no table in the result, by dotted names. */
  async facts() {
    const rows = await this.rows("result");
    return Object.fromEntries(rows.map(({ field, value }) => [field, value]));
  }

  /** The names of the parts that can be read; a note of the answer lists them. */
  async parts() {
    const { notes = [] } = await this.answer();
    const [list = "result, record"] = notes.filter((note) => note.startsWith(PARTS)).map((note) => note.slice(PARTS.length, -1));
    return list.replace(/ \([^)]*\)/g, "").split(", ");
  }
}

function asObjects({ table, total }) {
  const rows = table.rows.map((row) => Object.fromEntries(table.columns.map((name, place) => [name, row[place]])));
  return { rows, columns: table.columns, total };
}

/** The target categories of a result's facts. */
export function categories(facts) {
  const prefix = "categories.";
  return Object.keys(facts).filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));
}
