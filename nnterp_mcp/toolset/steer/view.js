/** The sweep, layers by factors: how far the vector moves the next token, beside random directions of equal norm. */

import { choice, element } from "../../viewer/elements.js";
import { Heatmap } from "../../viewer/heatmap.js";
import { layerHead, predictions, spoken, targets } from "../../viewer/predictions.js";
import { categories } from "../../viewer/run.js";
import { number, plural, quoted } from "../../viewer/wording.js";

export async function show(run, stage) {
  const facts = await run.facts();
  const runs = await run.rows("runs");
  const names = categories(facts);
  const body = element("div", {});
  const draw = (prompt) => drawPrompt(body, names, runs.filter((one) => one.prompt === prompt));
  if (facts.prompts.length > 1) stage.append(choice("Prompt", facts.prompts, 0, draw));
  else stage.append(element("p", { class: "prompt" }, facts.prompts[0]));
  stage.append(body);
  await draw(0);
  return true;
}

async function drawPrompt(body, names, runs) {
  const baseline = runs.find(({ layer }) => layer === null);
  const steered = runs.filter(({ layer, control }) => layer !== null && control === null);
  const layers = [...new Set(steered.map(({ layer }) => layer))].reverse();
  const given = new Set(steered.map(({ factor }) => factor));
  const factors = [...(given.size > 1 || layers.length === 1 ? given.add(0) : given)].sort((one, other) => one - other);
  const cells = new Map(steered.map((one) => [`${one.layer} ${one.factor}`, { ...one, controls: controls(runs, one) }]));
  const map = new Heatmap({
    label: "Steering by layer and factor",
    corner: "layer \\ factor",
    rows: layers.map(layerHead),
    columns: factors.map((factor) => ({ shows: signed(factor), says: `factor ${factor}` })),
    item: (row, column) => cells.get(`${layers[row]} ${factors[column]}`) ?? unsteered(factors[column], layers[row]),
    modes: modes(names),
    shows: (cell, mode) => number(mode.of(cell), 2),
    says,
    details: (cell) => details(cell, baseline, names),
  });
  const unsteered = (factor, layer) => (factor === 0 ? { ...baseline, layer, factor, push: 0, controls: [] } : null);
  body.replaceChildren(map.node);
  const strongest = steered.reduce((one, other) => (other.kl > one.kl ? other : one));
  await map.draw(layers.indexOf(strongest.layer), factors.indexOf(strongest.factor));
}

/** The runs with random directions at the same layer and factor. */
function controls(runs, { layer, factor }) {
  return runs.filter((one) => one.control !== null && one.layer === layer && one.factor === factor);
}

function modes(names) {
  return [
    { name: "KL from the baseline (nats)", of: ({ kl }) => kl },
    ...names.map((name, place) => ({ name: `probability of ${name}`, of: ({ targets: values }) => values[place][0] })),
    { name: "push, as a share of the state's norm", of: ({ push }) => push },
  ];
}

function mean(runs) {
  return runs.reduce((sum, { kl }) => sum + kl, 0) / runs.length;
}

function says({ layer, factor, kl, top, text, controls: random }) {
  const beside = random.length ? `, random directions ${number(mean(random))}` : "";
  const said = text === null ? "" : ` says ${quoted(text)};`;
  return `Layer ${layer}, factor ${signed(factor)}:${said} KL ${number(kl)} nats${beside}; ${spoken(top)}`;
}

function details({ top, kl, push, text, targets: values, controls: random }, baseline, names) {
  const control = random.length ? `${number(mean(random))} nats, mean of ${plural(random.length, "direction")}` : null;
  const shown = predictions(top, [
    ["says", text],
    ["KL from the baseline", `${number(kl)} nats`],
    ["KL of random directions", control],
    ["push", number(push)],
    ...targets(names, values),
  ]);
  const unsteered = predictions(baseline.top, [["says", baseline.text], ...targets(names, baseline.targets)]);
  return element("div", {}, element("h3", {}, "Steered"), shown, element("h3", {}, "Baseline"), unsteered);
}

function signed(factor) {
  return factor > 0 ? `+${factor}` : String(factor).replace("-", "−");
}
