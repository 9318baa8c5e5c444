/** A small curve over the rows of a grid. */

import { drawing, element } from "./elements.js";
import { number } from "./wording.js";

const [WIDTH, HEIGHT, EDGE] = [280, 72, 6];

/**
 * @param {{at: string, value: number|null}[]} points
 * @param {number} selected the point to mark
 * @param {string} name what the values are
 */
export function curve(points, selected, name) {
  const known = points.map((point, index) => ({ ...point, index })).filter(({ value }) => Number.isFinite(value));
  if (known.length < 2) return "";
  const values = known.map(({ value }) => value);
  const [low, high] = [Math.min(0, ...values), Math.max(...values, 0)];
  const x = (index) => EDGE + ((WIDTH - 2 * EDGE) * index) / Math.max(1, points.length - 1);
  const y = (value) => HEIGHT - EDGE - ((HEIGHT - 2 * EDGE) * (value - low)) / (high - low || 1);
  const path = known.map(({ index, value }) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const says = `${name} from ${known[0].at} (${number(values[0])}) to ${known.at(-1).at} (${number(values.at(-1))})`;
  const dot = known.find(({ index }) => index === selected);
  return element(
    "figure",
    { class: "curve" },
    drawing(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": says },
      drawing("line", { class: "axis", x1: EDGE, x2: WIDTH - EDGE, y1: y(0), y2: y(0) }),
      drawing("polyline", { points: path }),
      dot ? drawing("circle", { cx: x(dot.index), cy: y(dot.value), r: 4 }) : null,
    ),
    element("figcaption", {}, `${name}: ${number(low)} to ${number(high)}, ${known[0].at} to ${known.at(-1).at}`),
  );
}
