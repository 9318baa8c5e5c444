/** What the target prompt says, by patched layer and source; in a grid of layers, by source layer and target layer. */

import { choice, element } from "../../viewer/elements.js";
import { Heatmap } from "../../viewer/heatmap.js";
import { layerHead, modes, place, predictions, spoken, targets } from "../../viewer/predictions.js";
import { categories } from "../../viewer/run.js";
import { quoted, token } from "../../viewer/wording.js";

const COLUMNS = ["prompt", "position", "vector", "source_layer", "target_layer", "top", "entropy", "tracked", "text"];
const OWN = ["the source's own token", "the model's own next token"];

export async function show(run, stage) {
  const facts = await run.facts();
  const sources = await run.rows("sources", { columns: ["prompt", "position", "token", "vector", "answer"] });
  const patches = await run.rows("sources.patches", { columns: COLUMNS });
  const perSource = patches.length / sources.length;
  patches.forEach((patch, index) => Object.assign(patch, { source: sources[Math.floor(index / perSource)] }));
  const own = patches[0].tracked.length === OWN.length && categories(facts).length === 0;
  const view = { facts, sources, patches, names: own ? OWN : categories(facts) };
  stage.append(element("p", { class: "prompt" }, facts.before, element("mark", {}, facts.target_token), facts.after));
  if (facts.layout !== "grid") return draw(stage, bySource(view), view);
  const body = element("div", {});
  const turn = (index) => {
    body.replaceChildren();
    return draw(body, byLayers(view, sources[index]), view);
  };
  if (sources.length > 1) stage.append(choice("Source", sources.map((one) => head(one).says), 0, turn));
  stage.append(body);
  return turn(0);
}

async function draw(stage, options, { names }) {
  const map = new Heatmap({
    ...options,
    modes: modes(names, "tracked"),
    shows: ({ text, top }) => token(text ?? top[0][0]),
    says: (patch) => says(patch, names),
    details: ({ top, entropy, tracked, text }) =>
      predictions(top, [["says", text && quoted(text)], ["entropy", `${entropy.toPrecision(3)} nats`], ...targets(names, tracked)]),
  });
  stage.append(map.node);
  await map.draw(0, options.columns.length - 1);
  return true;
}

function bySource({ sources, patches }) {
  const layers = patches.slice(0, patches.length / sources.length).reverse();
  const heads = layers.map(({ source_layer: from, target_layer: to }) =>
    from === to ? layerHead(from) : { shows: `${from} → ${to}`, says: `layer ${from} to ${to}` },
  );
  return {
    label: "Patchscope: what the target prompt says, by layer and source",
    corner: "layer",
    rows: heads,
    columns: sources.map(head),
    item: (row, column) => patches[(column + 1) * layers.length - 1 - row],
  };
}

function byLayers({ patches }, source) {
  const own = patches.filter((patch) => patch.source === source);
  const from = [...new Set(own.map((patch) => patch.source_layer))];
  const to = [...new Set(own.map((patch) => patch.target_layer))].sort((one, other) => other - one);
  const places = new Map(own.map((patch) => [`${patch.source_layer} ${patch.target_layer}`, patch]));
  return {
    label: "Patchscope: what the target prompt says, by target layer and source layer",
    corner: "to \\ from",
    rows: to.map((layer) => ({ shows: String(layer), says: `into layer ${layer}` })),
    columns: from.map(layerHead),
    item: (row, column) => places.get(`${from[column]} ${to[row]}`) ?? null,
  };
}

function head({ vector, token: text, position }) {
  return vector ? { shows: vector, says: `vector ${vector}` } : place(text, position);
}

function says({ source, source_layer: from, target_layer: to, top, entropy, text, tracked }, names) {
  const where = from === to ? `layer ${from}` : `layer ${from} put into layer ${to}`;
  const followed = targets(names, tracked).filter(([, value]) => value).map(([name, value]) => `; ${name} ${value}`);
  const said = text ? ` says ${quoted(text)};` : "";
  return `${head(source).says}, ${where}:${said} ${spoken(top, entropy)}${followed.join("")}`;
}
