/** The lens as a grid of layers, the last on top, and positions; with one position, of layers and ranks. */

import { sequential } from "../../viewer/colors.js";
import { choice, element } from "../../viewer/elements.js";
import { Heatmap } from "../../viewer/heatmap.js";
import { layerHead, modes, place, predictions, spoken, targets } from "../../viewer/predictions.js";
import { categories } from "../../viewer/run.js";
import { number, quoted, token } from "../../viewer/wording.js";

const COLUMNS = ["position", "layer", "top", "entropy", "kl", "targets"];

export async function show(run, stage) {
  const facts = await run.facts();
  const readings = await run.rows("readings", { columns: ["prompt", "position", "token"] });
  const prompts = [...new Set(readings.map(({ prompt }) => prompt))];
  const body = element("div", {});
  const draw = (prompt) => drawPrompt(run, body, categories(facts), readings.filter((one) => one.prompt === prompt));
  if (prompts.length > 1) {
    const texts = await Promise.all(prompts.map((prompt) => textOf(run, prompt)));
    stage.append(choice("Prompt", texts, 0, (index) => draw(prompts[index])));
  } else stage.append(element("p", { class: "prompt" }, await textOf(run, prompts[0])));
  stage.append(body);
  await draw(prompts[0]);
  return true;
}

async function textOf(run, prompt) {
  const { rows } = await run.page("readings", { where: { prompt }, columns: ["text"], limit: 1 });
  return rows[0].text;
}

async function drawPrompt(run, body, names, readings) {
  const kept = new Map();
  const need = async (positions) => {
    const missing = positions.filter((position) => !kept.has(position));
    if (missing.length === 0) return;
    const where = { prompt: readings[0].prompt, position: missing };
    for (const row of await run.rows("readings.layers", { where, columns: COLUMNS })) {
      if (!kept.has(row.position)) kept.set(row.position, new Map());
      kept.get(row.position).set(row.layer, row);
    }
  };
  const last = readings.at(-1).position;
  await need([last]);
  const layers = [...kept.get(last).keys()].reverse();
  const options = readings.length > 1 ? byPosition(readings, layers, kept, need) : byRank(readings[0], layers, kept);
  const map = new Heatmap({
    ...options,
    rows: layers.map(layerHead),
    modes: [...options.modes, ...modes(names, "targets").slice(options.modes.length), { name: "KL to the last layer (nats)", of: ({ kl }) => kl }],
    says: (item) => says(item, readings, names),
    details: ({ top, entropy, kl, targets: values }) =>
      predictions(top, [["entropy", `${number(entropy)} nats`], ["KL(last || layer)", `${number(kl)} nats`], ...targets(names, values)]),
  });
  body.replaceChildren(map.node);
  await map.draw(0, options.columns.length > 1 && readings.length > 1 ? readings.length - 1 : 0);
}

function byPosition(readings, layers, kept, need) {
  return {
    label: "Logit lens: the top token by layer and position",
    corner: "layer",
    columns: readings.map(({ token: text, position }) => place(text, position)),
    need: ({ columns }) => need(columns.map((column) => readings[column].position)),
    item: (row, column) => kept.get(readings[column].position)?.get(layers[row]) ?? null,
    shows: ({ top }) => token(top[0][0]),
    modes: [],
  };
}

function byRank({ position }, layers, kept) {
  const item = (row, column) => {
    const found = kept.get(position).get(layers[row]);
    return column < found.top.length ? { ...found, rank: column } : null;
  };
  const count = Math.max(...[...kept.get(position).values()].map(({ top }) => top.length));
  return {
    label: "Logit lens: the top tokens by layer and rank",
    corner: "layer",
    columns: Array.from({ length: count }, (_, rank) => ({ shows: `top ${rank + 1}`, says: `rank ${rank + 1}` })),
    item,
    shows: ({ top, rank }) => token(top[rank][0]),
    modes: [{ name: "probability of the token", of: ({ top, rank }) => top[rank][1], ramp: () => sequential(0, 1) }],
  };
}

function says({ position, layer, top, entropy, kl, targets: values, rank }, readings, names) {
  const { token: text } = readings.find((one) => one.position === position);
  const followed = targets(names, values).map(([name, value]) => `; ${name} ${value}`);
  const ranked = rank ? `, rank ${rank + 1} ${quoted(top[rank][0])} ${number(top[rank][1])}` : "";
  const where = `Layer ${layer}, position ${position} ${quoted(text)}${ranked}`;
  return `${where}: ${spoken(top, entropy)}, KL ${number(kl)} nats${followed.join("")}`;
}
