/** The patching grid, the last layer on top, by positions or heads: blue and red for below and above the patched run. */

import { diverging, scale } from "../../viewer/colors.js";
import { choice, element, facts } from "../../viewer/elements.js";
import { Heatmap } from "../../viewer/heatmap.js";
import { layerHead } from "../../viewer/predictions.js";
import { hundredths, number, quoted, token } from "../../viewer/wording.js";

/** A named set of cells has no grid: the figure shows it. */
export async function show(run, stage, figure) {
  const found = await run.facts();
  const columns = await run.rows("columns");
  const cells = await run.rows("cells").catch(() => []);
  if (cells.length === 0) return false;
  const sites = [...new Set(cells.map(({ site }) => site))];
  const { colours } = figure.panels.find(({ kind }) => kind === "heatmap");
  const body = element("div", {});
  const draw = (index) => drawSite(body, found, columns, cells.filter(({ site }) => site === sites[index]), colours);
  stage.append(...(found.texts ?? []).map((text) => element("p", { class: "prompt" }, text)));
  stage.append(element("p", { class: "baselines" }, baselines(found)));
  stage.append(sites.length > 1 ? choice("Site", sites, 0, draw) : element("p", { class: "note" }, `Site: ${sites[0]}`), body);
  await draw(0);
  return true;
}

async function drawSite(body, found, columns, cells, colours) {
  const layers = [...new Set(cells.map(({ layer }) => layer))].reverse();
  const places = new Map(cells.map((cell) => [`${cell.layer} ${cell.column}`, cell]));
  const heads = columns.map((column) => head(column, found.by_head));
  const map = new Heatmap({
    label: `Activation patching at ${cells[0].site}: ${name(cells[0])} by layer and ${found.by_head ? "head" : "position"}`,
    corner: found.by_head ? "layer \\ head" : "layer",
    rows: layers.map(layerHead),
    columns: heads,
    item: (row, column) => places.get(`${layers[row]} ${column}`) ?? null,
    modes: modes(found, colours),
    shows: (cell, mode) => hundredths(mode.of(cell)),
    says: (cell) => `${where(cell, found)}, ${heads[cell.column].says}: ${told(cell, found)}`,
    details: (cell) => details(cell, found),
  });
  body.replaceChildren(map.node);
  const size = (cell) => (cell.by_construction ? -1 : Math.abs(cell.effect));
  const strongest = cells.reduce((one, other) => (size(other) > size(one) ? other : one));
  await map.draw(layers.indexOf(strongest.layer), strongest.column);
}

function head({ label, clean, corrupted }, byHead) {
  if (byHead) return { shows: label, says: `head ${label}` };
  const differs = corrupted !== null && corrupted !== clean;
  const shows = element("span", { class: "place" }, element("small", {}, label), token(clean ?? ""));
  if (differs) shows.append(element("span", { class: "against" }, token(corrupted)));
  return { shows, says: `position ${label} ${quoted(clean ?? "")}${differs ? ` against ${quoted(corrupted)}` : ""}` };
}

/** The numbers and the scale of the figure; the metric itself, about that of the patched run. */
function modes({ metric, direction, ...found }, colours) {
  const base = direction === "denoising" ? (found["corrupted.mean"] ?? found["clean.mean"]) : found["clean.mean"];
  const reach = (values) => values().reduce((far, value) => Math.max(far, Math.abs(value - base)), 1e-9);
  return [
    { name: colours.name, of: (one) => one.recovery ?? one.effect, ramp: () => scale(colours) },
    { name: metric.replaceAll("_", " "), of: (one) => one.metric, ramp: (values) => diverging(base, reach(values)) },
  ];
}

function name(cell) {
  return cell.recovery != null ? "recovery" : "metric";
}

/** The layer of a cell, or those about it where it stands for several. */
function where({ layer }, { window = 1 }) {
  return window > 1 ? `${window} layers about layer ${layer}` : `Layer ${layer}`;
}

function interval(cell, prefix) {
  const [low, high] = [cell[`${prefix}.low`], cell[`${prefix}.high`]];
  return low === null || low === undefined ? "" : ` (95 %: ${number(low)} to ${number(high)})`;
}

function told(cell, { metric }) {
  const measured = `${metric.replaceAll("_", " ")} ${number(cell.metric)}${interval(cell, "metric")}`;
  if (cell.recovery == null) return measured;
  return `recovery ${number(cell.recovery)}${interval(cell, "recovery")}, ${measured}`;
}

function details(cell, { metric }) {
  return element(
    "div",
    {},
    facts([
      ["site", cell.site],
      ["recovery", cell.recovery != null ? `${number(cell.recovery)}${interval(cell, "recovery")}` : null],
      [metric.replaceAll("_", " "), `${number(cell.metric)}${interval(cell, "metric")}`],
      ["effect of the patch", number(cell.effect)],
    ]),
  );
}

function baselines(found) {
  const corrupted = "corrupted.mean" in found ? `, ${found.corruption} ${number(found["corrupted.mean"])}` : "";
  return `${found.metric.replaceAll("_", " ")}: clean ${number(found["clean.mean"])}${corrupted}.`;
}
