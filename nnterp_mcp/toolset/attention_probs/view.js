/** Every head in a grid of layers, and below it what the selected one attends to, token by token. */

import { sequential } from "../../viewer/colors.js";
import { choice, element, facts } from "../../viewer/elements.js";
import { Heatmap } from "../../viewer/heatmap.js";
import { layerHead, place } from "../../viewer/predictions.js";
import { number, quoted } from "../../viewer/wording.js";

const KINDS = ["induction", "previous", "duplicate"];
const MASSES = ["first", "previous", "itself", "duplicate", "induction"];

export async function show(run, stage) {
  const heads = await run.rows("heads");
  const pairs = Map.groupBy(await run.rows("heads.pairs").catch(() => []), nameOf);
  const patterns = new Patterns(run, heads, await run.rows("tokens").catch(() => []));
  const below = element("section", { class: "pattern", "aria-label": "Attention pattern of the selected head" });
  const layers = [...new Set(heads.map(({ layer }) => layer))];
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
    onSelect: (row, column) => item(row, column) && patterns.draw(item(row, column), below),
  });
  stage.append(map.node, below);
  const score = (head) => map.mode.of(head) ?? -1;
  const best = heads.reduce((one, other) => (score(other) > score(one) ? other : one));
  await map.draw(layers.indexOf(best.layer), columns.indexOf(best.head));
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

/** A number to a hundredth; nothing where that is nothing. */
function hundredths(value) {
  return value === null || value < 0.005 ? "" : value.toFixed(2).replace(/^0/, "");
}

/** The patterns that a run kept: an array for each prompt, a row for each head and query. */
class Patterns {
  constructor(run, heads, tokens) {
    Object.assign(this, { run, names: heads.map(nameOf), prompts: tokens.map((row) => row.tokens), prompt: 0 });
  }

  /** Draws a head's pattern; one that is asked for meanwhile takes its place. */
  async draw(head, stage) {
    this.head = head;
    stage.setAttribute("aria-busy", "true");
    try {
      const rows = await this.read(nameOf(head));
      if (this.head === head) await this.fill(stage, head, rows);
    } catch (error) {
      if (this.head === head) stage.replaceChildren(element("p", { class: "note" }, `No pattern: ${error.message}`));
    }
    if (this.head === head) stage.removeAttribute("aria-busy");
  }

  get part() {
    return this.prompts.length > 1 ? `attention_${this.prompt}` : "attention";
  }

  /** Rows lie head by head, so that a head's are found by counting. */
  async read(name) {
    const { total } = await this.run.page(this.part, { limit: 1 });
    const queries = total / this.names.length;
    return this.run.rows(this.part, { offset: this.names.indexOf(name) * queries, most: queries });
  }

  async fill(stage, head, rows) {
    const tokens = this.prompts[this.prompt] ?? rows.map(() => "");
    const heads = tokens.map((text, position) => place(text, position));
    const spoken = (query, key) => `${heads[query].says} to ${heads[key].says}`;
    const key = Object.keys(rows[0]).find((name) => name.endsWith(" by key"));
    const map = new Heatmap({
      label: `Attention of ${nameOf(head)}: from each query (row) to each key (column)`,
      corner: "query \\ key",
      rows: heads,
      columns: heads,
      item: (from, to) => (to > from ? null : { from, to, probability: rows[from][key][to] }),
      modes: [
        { name: "attention probability", of: ({ probability }) => probability, ramp: () => sequential(0, 1) },
        { name: "the same, the first token aside", of: ({ to, probability }) => (to === 0 ? null : probability) },
      ],
      shows: ({ probability }) => hundredths(probability),
      says: ({ from, to, probability }) => `${nameOf(head)}, ${spoken(from, to)}: ${number(probability)}`,
      details: ({ from }) => strongest(rows[from][key], heads),
      curves: false,
    });
    stage.replaceChildren(element("h2", {}, `Pattern of ${nameOf(head)}`), ...this.promptChoice(head, stage), map.node);
    await map.draw(rows.length - 1, 0);
  }

  promptChoice(head, stage) {
    if (this.prompts.length < 2) return [];
    const texts = this.prompts.map((tokens) => tokens.join(""));
    const turn = (prompt) => this.draw(head, stage, (this.prompt = prompt));
    return [choice("Prompt", texts, this.prompt, turn)];
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
