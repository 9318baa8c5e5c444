/** What each part adds: layers by heads, sublayers or positions, or tokens. Blue takes away, red adds; the last layer is on top. */

import { diverging } from "../../viewer/colors.js";
import { choice, element, facts } from "../../viewer/elements.js";
import { Heatmap } from "../../viewer/heatmap.js";
import { layerHead, place } from "../../viewer/predictions.js";
import { hundredths, number, quoted, token } from "../../viewer/wording.js";

/** Neurons are too many for a grid, and only the strongest are kept: their answer's table says it better. */
export async function show(run, stage) {
  const found = await run.facts();
  if (found.by === "neuron") return;
  const parts = await run.rows("parts");
  if (found.by === "token") {
    await draw(stage, byToken(parts), found);
    return true;
  }
  const inLayers = parts.filter(({ layer }) => layer !== null);
  const others = parts.filter(({ layer }) => layer === null);
  const sheets = found.method === "patching" ? [...new Set(inLayers.map(({ kind }) => kind))] : [null];
  const body = element("div", {});
  const turn = (index) => {
    const sheet = inLayers.filter(({ kind }) => sheets[index] === null || kind === sheets[index]);
    body.replaceChildren();
    return draw(body, byLayer(sheet), found);
  };
  if (sheets.length > 1) stage.append(choice("Site", sheets, 0, turn));
  if (others.length) stage.append(element("p", { class: "note" }, `Outside the layers: ${others.map(listed).join(", ")}.`));
  stage.append(body);
  await turn(0);
  return true;
}

function listed({ kind, ...part }) {
  return `${kind} ${number(part.value)}`;
}

async function draw(stage, options, { metric, method }) {
  const name = `${method === "patching" ? "estimated change of" : "added to"} the ${metric.replaceAll("_", " ")} (${metric === "log_probability" ? "nats" : "logits"})`;
  const reach = (values) => values().reduce((far, value) => Math.max(far, Math.abs(value)), 1e-9);
  const mode = { name, of: (part) => part.value, ramp: (values) => diverging(0, reach(values)) };
  const patched = { ...mode, name: "effect of the real patch", of: (part) => part.patched };
  const map = new Heatmap({
    shows: (part, { of }) => hundredths(of(part)),
    ...options,
    modes: options.parts.some((part) => part.patched !== null) ? [mode, patched] : [mode],
    says: (part) => `${options.where(part)}: ${name} ${number(part.value)}`,
    details: (part) => details(part, options.where(part), name),
  });
  stage.append(map.node);
  const size = (part) => Math.abs(part.value);
  await map.draw(...options.at(options.parts.reduce((one, other) => (size(other) > size(one) ? other : one))));
}

function byLayer(parts) {
  const layers = [...new Set(parts.map(({ layer }) => layer))].sort((one, other) => other - one);
  const columns = [...new Map(parts.map((part) => [column(part), part]))].sort(([, one], [, other]) => order(one) - order(other));
  const names = columns.map(([name]) => name);
  const places = new Map(parts.map((part) => [`${part.layer} ${column(part)}`, part]));
  return {
    parts,
    label: "Attribution by layer and part",
    corner: "layer",
    rows: layers.map(layerHead),
    columns: columns.map(([name, part]) => (part.token === null ? { shows: name, says: name } : place(part.token, part.index))),
    item: (row, at) => places.get(`${layers[row]} ${names[at]}`) ?? null,
    at: (part) => [layers.indexOf(part.layer), names.indexOf(column(part))],
    where: (part) => `Layer ${part.layer}, ${column(part)}${part.token === null ? "" : ` ${quoted(part.token)}`}`,
  };
}

/** What stands in one column: a head, a position, or a sublayer. */
function column({ kind, index, token: text }) {
  if (index === null) return kind === "mlp" ? "MLP" : kind;
  return text === null ? `H${index}` : `position ${index}`;
}

/** Numbered parts in their order, the others after them. */
function order({ index }) {
  return index ?? Infinity;
}

function byToken(parts) {
  const prompts = [...new Set(parts.map(({ prompt }) => prompt))];
  const places = new Map(parts.map((part) => [`${part.prompt} ${part.index}`, part]));
  const longest = Math.max(...parts.map(({ index }) => index));
  return {
    parts,
    label: "Attribution by prompt and token",
    corner: "prompt",
    rows: prompts.map((prompt) => ({ shows: String(prompt), says: `prompt ${prompt}` })),
    columns: Array.from({ length: longest + 1 }, (_, index) => ({ shows: String(index), says: `position ${index}` })),
    item: (row, index) => places.get(`${prompts[row]} ${index}`) ?? null,
    shows: (part) => token(part.token),
    at: (part) => [prompts.indexOf(part.prompt), part.index],
    where: (part) => `Prompt ${part.prompt}, position ${part.index} ${quoted(part.token)}`,
    curves: false,
  };
}

function details(part, where, name) {
  const [low, high] = [part["value.low"], part["value.high"]];
  return facts([
    ["part", where],
    [name, number(part.value)],
    ["95 % interval", low === null ? null : `${number(low)} to ${number(high)}`],
    ["effect of the real patch", part.patched === null ? null : number(part.patched)],
  ]);
}
