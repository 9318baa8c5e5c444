/** Every head in a grid of layers, and beside it what the selected one attends to, token by token. */

import { scale, sequential } from "../../viewer/colors.js";
import { choice, element, facts } from "../../viewer/elements.js";
import { Heatmap } from "../../viewer/heatmap.js";
import { layerHead, place } from "../../viewer/predictions.js";
import { hundredths, number, quoted } from "../../viewer/wording.js";

const KINDS = ["induction", "previous", "duplicate"];
const NUMBERS = 50_000;
const MASSES = ["first", "previous", "itself", "duplicate", "induction"];

export async function show(run, stage, figure) {
  const heads = await run.rows("heads");
  const pairs = Map.groupBy(await run.rows("heads.pairs").catch(() => []), nameOf);
  const drawn = figure.panels.find(({ square }) => square);
  const patterns = new Patterns(run, heads, await run.rows("tokens").catch(() => []), drawn);
  const beside = element("section", { class: "pattern", "aria-label": "Attention pattern of the selected head" });
  const layers = [...new Set(heads.map(({ layer }) => layer))].reverse();
  const columns = [...new Set(heads.map(({ head }) => head))].sort((one, other) => one - other);
  const places = new Map(heads.map((head) => [nameOf(head), head]));
  const item = (row, column) => places.get(nameOf({ layer: layers[row], head: columns[column] })) ?? null;
  const map = new Heatmap({
    label: "Attention heads by layer",
    corner: "layer \\ head",
    rows: layers.map(layerHead),
    columns: columns.map((head) => ({ shows: String(head), says: `head ${head}` })),
    item,
    modes: modes(heads),
    shows: (head, mode) => hundredths(mode.of(head)),
    says,
    details: (head) => details(head, pairs.get(nameOf(head)) ?? []),
    curves: false,
    onSelect: (row, column) => item(row, column) && patterns.draw(item(row, column), beside),
    beside,
  });
  stage.append(map.node);
  const score = (head) => (drawn?.title.split(" ")[0] === nameOf(head) ? Infinity : (map.mode.of(head) ?? -1));
  const best = heads.reduce((one, other) => (score(other) > score(one) ? other : one));
  await map.draw(layers.indexOf(best.layer), columns.indexOf(best.head));
}

/** The text of tokens by their names; those that are bytes are decoded together. */
function textOf(tokens) {
  const bytes = (names) => Uint8Array.from(names.match(/[0-9A-F]{2}/g), (code) => parseInt(code, 16));
  return tokens.join("").replace(/(?:<0x[0-9A-F]{2}>)+/g, (names) => new TextDecoder().decode(bytes(names)));
}

function nameOf({ layer, head }) {
  return `L${layer}H${head}`;
}

function modes(heads) {
  const unit = () => sequential(0, 1);
  const scored = KINDS.filter(() => "kinds.induction" in heads[0]);
  return [
    ...scored.map((kind) => ({ name: `${kind} score on random tokens`, of: (head) => head[`kinds.${kind}`], ramp: unit })),
    ...MASSES.map((mass) => ({ name: `attention to ${mass}`, of: (head) => head[`mean.${mass}`], ramp: unit })),
    { name: "entropy (nats)", of: (head) => head["mean.entropy"] },
  ];
}

function says(head) {
  const kinds = KINDS.filter((kind) => `kinds.${kind}` in head).map((kind) => `${kind} ${number(head[`kinds.${kind}`], 2)}`);
  const first = `${number(head["mean.first"], 2)} of its attention to the first token`;
  return `Layer ${head.layer}, head ${head.head}: ${first}, entropy ${number(head["mean.entropy"])} nats${
    kinds.length ? `; on random tokens ${kinds.join(", ")}` : ""
  }`;
}

function details(head, pairs) {
  const strongest = pairs.map(({ query, query_token: from, key, key_token: to, probability }) =>
    element("li", {}, `${quoted(from)} (${query}) → ${quoted(to)} (${key}): ${number(probability)}`),
  );
  return element(
    "div",
    {},
    element("h3", {}, nameOf(head)),
    facts(MASSES.map((mass) => [`attention to ${mass}`, number(head[`mean.${mass}`], 2)])),
    strongest.length ? [element("h4", {}, "Strongest pairs"), element("ol", { class: "pairs" }, strongest)] : null,
  );
}

/** The patterns that a run kept: an array for each prompt, a row for each head and query, a number for each key. */
class Patterns {
  constructor(run, heads, tokens, drawn) {
    const colours = drawn?.colours ?? { name: "attention probability", low: 0, high: 1 };
    const position = drawn ? Number(drawn.rows[drawn.focus[0]].split(" ").at(-1)) : null;
    Object.assign(this, { run, colours, position, names: heads.map(nameOf), prompts: tokens.map((row) => row.tokens), prompt: 0 });
  }

  /** Draws a head's pattern; one that is asked for meanwhile takes its place. */
  async draw(head, stage) {
    this.head = head;
    stage.setAttribute("aria-busy", "true");
    try {
      const pattern = await Pattern.open(this.run, this.part, this.names, nameOf(head));
      if (this.head === head) await this.fill(stage, head, pattern);
    } catch (error) {
      if (this.head === head) stage.replaceChildren(element("p", { class: "note" }, `No pattern: ${error.message}`));
    }
    if (this.head === head) stage.removeAttribute("aria-busy");
  }

  get part() {
    return this.prompts.length > 1 ? `attention_${this.prompt}` : "attention";
  }

  async fill(stage, head, pattern) {
    const tokens = this.prompts[this.prompt] ?? Array(pattern.count).fill("");
    const heads = tokens.map((text, position) => place(text, position));
    const map = new Heatmap({
      label: `Attention of ${nameOf(head)}: from each query (row) to each key (column)`,
      corner: "query \\ key",
      rows: heads,
      columns: heads,
      need: ({ rows }) => pattern.need(rows),
      item: (from, to) => pattern.at(from, to),
      modes: [{ name: this.colours.name, of: ({ probability }) => probability, ramp: () => scale(this.colours) }],
      shows: ({ probability }) => hundredths(probability),
      says: ({ from, to, probability }) =>
        `${nameOf(head)}, ${heads[from].says} to ${heads[to].says}: ${number(probability)}`,
      details: ({ from }) => strongest(pattern.rows.get(from), heads),
      curves: false,
    });
    stage.replaceChildren(element("h2", {}, `Pattern of ${nameOf(head)}`), ...this.promptChoice(head, stage), map.node);
    const at = this.prompt === 0 && this.position !== null ? this.position : pattern.count - 1;
    await map.draw(at, at);
  }

  promptChoice(head, stage) {
    if (this.prompts.length < 2) return [];
    const texts = this.prompts.map(textOf);
    const turn = (prompt) => {
      this.prompt = prompt;
      this.draw(head, stage);
    };
    return [choice("Prompt", texts, this.prompt, turn)];
  }
}

/** One head's pattern over one prompt, read as far as it is looked at. */
class Pattern {
  /** Rows lie head by head, so that a head's are found by counting. */
  static async open(run, part, names, name) {
    const { rows, columns, total } = await run.page(part, { limit: 1 });
    const count = total / names.length;
    const keys = columns.at(-1);
    const size = Math.max(1, Math.floor(NUMBERS / rows[0][keys].length));
    return Object.assign(new Pattern(), { run, part, keys, count, size, first: names.indexOf(name) * count, rows: new Map() });
  }

  async need(queries) {
    const missing = queries.filter((query) => !this.rows.has(query));
    if (missing.length === 0) return;
    const [from, to] = [missing[0], missing.at(-1)];
    const range = { offset: this.first + from, most: to - from + 1, size: this.size };
    const read = await this.run.rows(this.part, range);
    read.forEach((row, index) => this.rows.set(from + index, row[this.keys]));
  }

  /** What a query gives a key; null for a key that comes after it, or where nothing was read yet. */
  at(from, to) {
    const row = this.rows.get(from);
    return row === undefined || to > from ? null : { from, to, probability: row[to] };
  }
}

function strongest(probabilities, heads) {
  const order = probabilities.map((probability, key) => ({ probability, key })).sort((a, b) => b.probability - a.probability);
  const shown = order.filter(({ probability }) => probability >= 0.01).slice(0, 5);
  return element(
    "div",
    {},
    element("h3", {}, "This query's strongest keys"),
    facts(shown.map(({ probability, key }) => [heads[key].says, number(probability)])),
  );
}
