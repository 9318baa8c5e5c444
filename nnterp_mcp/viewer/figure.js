/** Figures drawn from the description that pictures are drawn from: heatmaps, curves, bars, texts and graphs. */

import { scale } from "./colors.js";
import { lines } from "./chart.js";
import { element } from "./elements.js";
import { network } from "./graph.js";
import { Heatmap } from "./heatmap.js";
import { table } from "./table.js";
import { hundredths, number } from "./wording.js";

const KINDS = { heatmap, curves, bars, passages, graph };

/** The title of a figure, what it was measured on, and its notes. */
export function introduce({ title, subtitle, notes }) {
  document.title = title;
  document.getElementById("title").textContent = title;
  document.getElementById("finding").textContent = subtitle;
  document.getElementById("notes").replaceChildren(...notesOf(notes));
}

/** Notes as a list, which is left out where there are none. */
export function notesOf(notes) {
  return notes.length ? [element("ul", {}, notes.map((note) => element("li", { dir: "auto" }, note)))] : [];
}

/** Panels side by side, as far as they fit. */
export function panels(described) {
  return element("div", { class: "panels" }, described.map(panel));
}

function panel(described) {
  const { kind, title } = described;
  return element("section", { class: `panel ${kind}`, "aria-label": title }, element("h2", {}, title), KINDS[kind](described));
}

function heatmap({ title, across, down, columns, rows, values, colours, labels, square, focus }) {
  const named = (names, axis) => names.map((name) => ({ shows: element("bdi", {}, name), says: `${axis} ${name}` }));
  const item = (row, column) => {
    const value = values[row][column];
    return value === null ? null : { row, column, value, label: labels?.[row][column] };
  };
  const map = new Heatmap({
    label: title,
    corner: `${down} \\ ${across}`,
    rows: named(rows, down),
    columns: named(columns, across),
    item,
    modes: [{ name: colours.name, of: ({ value }) => value, ramp: () => scale(colours) }],
    shows: ({ value, label }) => (square ? "" : label === undefined ? hundredths(value) : element("bdi", {}, label)),
    says: ({ row, column, value, label }) =>
      `${down} ${rows[row]}, ${across} ${columns[column]}: ${label === undefined ? "" : `${label} `}${number(value)}`,
    details: () => "",
    curves: false,
  });
  map.grid.table.classList.toggle("dense", square);
  map.draw(...(focus ?? largest(values, colours.centre ?? 0)));
  return map.node;
}

/** The cell whose value is farthest from the middle. */
function largest(values, middle) {
  const size = ([row, column]) => Math.abs((values[row][column] ?? middle) - middle);
  const cells = values.flatMap((row, at) => row.map((_, column) => [at, column]));
  return cells.reduce((one, other) => (size(other) > size(one) ? other : one), [0, 0]);
}

function curves(described) {
  const { curves: drawn, across, up, names } = described;
  const named = new Map(names);
  const points = [...new Set(drawn.flatMap(({ x }) => x))].sort((one, other) => one - other);
  const rows = points.map((x) => [named.get(x) ?? number(x), ...drawn.map((curve) => number(curve.y[curve.x.indexOf(x)] ?? null))]);
  const head = [across, ...drawn.map(({ name }) => name)];
  return [
    lines(described),
    element("ul", { class: "key" }, drawn.map((curve) => element("li", {}, sample(curve), element("bdi", {}, curve.name)))),
    element("details", {}, element("summary", {}, "Numbers"), table({ columns: head, rows }, `${up} by ${across}`)),
  ];
}

function sample({ series, dash }) {
  const line = element("span", { class: `sample ${dash ? "dashed" : ""}`, "aria-hidden": "true" });
  line.style.color = colour(series);
  return line;
}

/** The colour of a curve; controls of no curve are grey. */
function colour(series) {
  return series === null ? "var(--quiet)" : `var(--series-${series})`;
}

function bars({ along, bars: drawn, mark, signed }) {
  const ends = drawn.flatMap(({ value, low, high, mark: marked }) => [value, low ?? value, high ?? value, marked ?? value]);
  const [least, most] = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const place = (value) => (100 * (value - least)) / (most - least || 1);
  const across = (kind, from, to, background) => {
    const part = element("span", { class: kind });
    part.style.left = `${place(Math.min(from, to))}%`;
    part.style.width = `${Math.abs(place(to) - place(from))}%`;
    if (background) part.style.background = background;
    return part;
  };
  const fill = ({ value, role }) => {
    if (role === "control") return "var(--quiet)";
    return signed ? (value < 0 ? "var(--lowers)" : "var(--raises)") : "var(--series-0)";
  };
  const row = (bar) =>
    element(
      "li",
      {},
      element("bdi", { class: "what" }, bar.name),
      element(
        "span",
        { class: "axis-track", "aria-hidden": "true" },
        across("beam", 0, bar.value, fill(bar)),
        bar.low === null ? null : across("interval", bar.low, bar.high),
        bar.mark === null ? null : across("mark", bar.mark, bar.mark),
        across("zero", 0, 0),
      ),
      element("span", { class: "much" }, bar.low === null ? number(bar.value) : `${number(bar.value)} (${number(bar.low)} to ${number(bar.high)})`),
    );
  const told = mark ? `${along}; ◇ ${mark}` : along;
  return [element("p", { class: "note" }, told), element("ol", { class: "beams" }, drawn.map(row))];
}

function passages({ rows }) {
  return element("dl", { class: "texts" }, rows.map(([name, text]) => [element("dt", {}, name), element("dd", { dir: "auto" }, text)]));
}

function graph(described) {
  const { edges, strength, title } = described;
  const rows = edges.map(({ sender, receiver, label, value }) => [sender, `${receiver} ${label}`.trim(), number(value)]);
  return [
    network(described),
    element("details", {}, element("summary", {}, "Numbers"), table({ columns: ["from", "to", strength], rows }, title)),
  ];
}
