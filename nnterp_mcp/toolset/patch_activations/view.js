/** The patching grid, layers by positions or heads: blue and orange for below and above the run that is patched. */

import { diverging } from "../../viewer/colors.js";
import { choice, element, facts } from "../../viewer/elements.js";
import { Heatmap } from "../../viewer/heatmap.js";
import { layerHead } from "../../viewer/predictions.js";
import { hundredths, number, plural, quoted, token } from "../../viewer/wording.js";

const LEAST = 0.2;

export async function show(run, stage) {
  const found = await run.facts();
  const columns = await run.rows("columns");
  const cells = await run.rows("cells");
  const sites = [...new Set(cells.map(({ site }) => site))];
  const body = element("div", {});
  const draw = (index) => drawSite(body, found, columns, cells.filter(({ site }) => site === sites[index]));
  stage.append(...(found.texts ?? []).map((text) => element("p", { class: "prompt" }, text)));
  stage.append(element("p", { class: "baselines" }, baselines(found), " ", control(found)));
  stage.append(sites.length > 1 ? choice("Site", sites, 0, draw) : element("p", { class: "note" }, `Site: ${sites[0]}`), body);
  await draw(0);
}

async function drawSite(body, found, columns, cells) {
  const layers = [...new Set(cells.map(({ layer }) => layer))];
  const places = new Map(cells.map((cell) => [`${cell.layer} ${cell.column}`, cell]));
  const heads = columns.map((column) => head(column, found.by_head));
  const map = new Heatmap({
    label: `Activation patching at ${cells[0].site}: ${name(cells[0])} by layer and ${found.by_head ? "head" : "position"}`,
    corner: found.by_head ? "layer \\ head" : "layer",
    rows: layers.map(layerHead),
    columns: heads,
    item: (row, column) => places.get(`${layers[row]} ${column}`) ?? null,
    modes: modes(cells[0], found),
    shows: (cell, mode) => hundredths(mode.of(cell)),
    says: (cell) => `${where(cell, found)}, ${heads[cell.column].says}: ${told(cell, found)}`,
    details: (cell) => details(cell, found),
  });
  body.replaceChildren(map.node);
  const strongest = cells.reduce((one, other) => (Math.abs(other.effect) > Math.abs(one.effect) ? other : one));
  await map.draw(layers.indexOf(strongest.layer), strongest.column);
}

function head({ label, clean, corrupted }, byHead) {
  if (byHead) return { shows: label, says: `head ${label}` };
  const differs = corrupted !== null && corrupted !== clean;
  const shows = element("span", { class: "place" }, element("small", {}, label), token(clean ?? ""));
  if (differs) shows.append(element("span", { class: "against" }, token(corrupted)));
  return { shows, says: `position ${label} ${quoted(clean ?? "")}${differs ? ` against ${quoted(corrupted)}` : ""}` };
}

function modes(cell, { metric, clean, ...found }) {
  const base = found.direction === "denoising" ? (found["corrupted.mean"] ?? found["clean.mean"]) : found["clean.mean"];
  const measured = {
    name: metric.replaceAll("_", " "),
    of: (one) => one.metric,
    ramp: (values) => diverging(base, reach(values, base, 1e-9)),
  };
  const recovery = {
    name: "recovery",
    of: (one) => one.recovery,
    ramp: (values) => diverging(0, reach(values, 0, LEAST)),
  };
  return cell.recovery != null ? [recovery, measured] : [measured];
}

/** How far values lie from a middle, in either direction. */
function reach(values, middle, least) {
  return values().reduce((far, value) => Math.max(far, Math.abs(value - middle)), least);
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

/** The strongest cells together beside as many random ones; nothing where that was not asked for. */
function control(found) {
  if (!("together.cells" in found)) return "";
  const recovers = "together.recovery.mean" in found;
  const draws = recovers ? found["together.control_recoveries"] : found["together.controls"];
  const mean = draws.reduce((sum, one) => sum + one, 0) / draws.length;
  const together = number(found[recovers ? "together.recovery.mean" : "together.metric.mean"]);
  const random = `${number(mean)} in the mean of ${plural(draws.length, "draw")}`;
  return `Control: the ${plural(found["together.cells"], "strongest cell")} together give ${together}; as many random cells ${random}.`;
}
