/** Curves over one axis, drawn as wide as there is room. */

import { drawing, element } from "./elements.js";
import { number } from "./wording.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [70, 14, 10, 40];
const [HEIGHT, WIDEST, NARROWEST] = [300, 640, 260];
const LABEL = 30;
const SHAPES = ["circle", "square", "diamond", "up", "down"];

/** @param {object} panel curves as a figure describes them */
export function lines(panel) {
  const frame = element("div", { class: "chart" });
  let drawn = 0;
  new ResizeObserver(([{ contentRect }]) => {
    const width = Math.max(NARROWEST, Math.min(WIDEST, Math.floor(contentRect.width)));
    if (width === drawn) return;
    drawn = width;
    frame.replaceChildren(draw(panel, width));
  }).observe(frame);
  return frame;
}

function draw(panel, width) {
  const { title, across, up, curves, names, ranks } = panel;
  const xs = [...new Set(curves.flatMap(({ x }) => x))].sort((one, other) => one - other);
  const x = placed(xs[0], xs.at(-1), LEFT + 8, width - RIGHT - 8);
  const marks = ranks ? rankTicks(curves) : ticks(...extent(panel));
  const of = (value) => (ranks ? -Math.log10(Math.max(1, value)) : value);
  const y = placed(Math.min(...marks.map(of)), Math.max(...marks.map(of)), HEIGHT - BOTTOM, TOP);
  const height = (value) => y(of(value));
  const named = new Map(names);
  const label = `${title}: ${up} by ${across}, ${curves.map(({ name }) => name).join(", ")}`;
  return drawing(
    "svg",
    { width, height: HEIGHT, role: "img", "aria-label": label },
    marks.map((mark) => [
      drawing("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: height(mark), y2: height(mark) }),
      drawing("text", { x: LEFT - 6, y: height(mark) + 4, "text-anchor": "end" }, number(mark)),
    ]),
    thinned(xs, x).map((at) => drawing("text", { x: x(at), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, named.get(at) ?? number(at))),
    drawing("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, across),
    drawing("text", { class: "up", transform: `translate(12 ${(HEIGHT - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, up),
    curves.map((curve, place) => line(curve, place, x, height)),
  );
}

function line({ x: xs, y: ys, low, high, name, series, dash }, place, x, y) {
  const points = xs.map((at, index) => [x(at), y(ys[index])]);
  const path = (corners) => corners.map((corner) => corner.map((part) => part.toFixed(1)).join(",")).join(" ");
  const group = drawing("g", { class: `curve-line ${dash ? "dashed" : ""}` });
  group.style.color = series === null ? "var(--quiet)" : `var(--series-${series})`;
  if (low && high) {
    const edge = (values) => xs.map((at, index) => [x(at), y(values[index])]);
    group.append(drawing("polygon", { points: path([...edge(high), ...edge(low).reverse()]) }));
  }
  group.append(drawing("polyline", { points: path(points) }));
  if (!dash || xs.length === 1)
    points.forEach(([left, top], index) => {
      const says = drawing("title", {}, `${name}, ${number(xs[index])}: ${number(ys[index])}`);
      group.append(drawing("path", { d: shape(SHAPES[place % SHAPES.length], left, top) }, says));
    });
  return group;
}

function shape(kind, x, y) {
  return {
    circle: `M${x - 3},${y}a3,3 0 1,0 6,0a3,3 0 1,0 -6,0`,
    square: `M${x - 3},${y - 3}h6v6h-6z`,
    diamond: `M${x},${y - 4}l4,4l-4,4l-4,-4z`,
    up: `M${x},${y - 4}l4,7h-8z`,
    down: `M${x},${y + 4}l4,-7h-8z`,
  }[kind];
}

/** A linear scale; a single value lies in the middle. */
function placed(low, high, from, to) {
  return (value) => (high === low ? (from + to) / 2 : from + ((value - low) / (high - low)) * (to - from));
}

function extent({ curves, span }) {
  const values = curves.flatMap(({ y, low, high }) => [...y, ...(low ?? []), ...(high ?? [])]).filter(Number.isFinite);
  return [Math.min(...values, span?.[0] ?? Infinity), Math.max(...values, span?.[1] ?? -Infinity)];
}

/** Round numbers that enclose an extent. */
function ticks(low, high) {
  const rough = (high - low || Math.abs(high) || 1) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const first = Math.floor(low / step + 1e-9);
  const count = Math.max(1, Math.ceil(high / step - 1e-9) - first);
  return Array.from({ length: count + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

/** Powers of ten from 1 to beyond the largest rank. */
function rankTicks(curves) {
  const most = Math.max(10, ...curves.flatMap(({ y }) => y));
  return Array.from({ length: Math.ceil(Math.log10(most)) + 1 }, (_, power) => 10 ** power);
}

/** As many of the points of an axis as have room for a label; each of them exists. */
function thinned(points, x) {
  const kept = [];
  for (const at of points) if (kept.length === 0 || x(at) - x(kept.at(-1)) >= LABEL) kept.push(at);
  return kept;
}
