/** Nodes in rows with edges between them, as wide as they are strong: blue lowers, red raises. */

import { drawing, element } from "./elements.js";
import { number } from "./wording.js";

const [WIDTH, LEVEL, EDGE, STEP] = [640, 34, 20, 7];

/** @param {object} panel a graph as a figure describes it */
export function network({ title, strength, nodes, edges }) {
  const levels = 1 + Math.max(0, ...nodes.map(({ level }) => level));
  const height = levels * LEVEL + 2 * EDGE;
  const place = new Map(nodes.map(({ name, x, level }) => [name, [EDGE + x * (WIDTH - 2 * EDGE), height - EDGE - (level + 0.5) * LEVEL]]));
  const most = Math.max(...edges.map(({ value }) => Math.abs(value))) || 1;
  const label = `${title}: ${nodes.length} nodes, ${edges.length} edges, ${strength}`;
  const drawn = drawing(
    "svg",
    { class: "network", viewBox: `0 0 ${WIDTH} ${height}`, width: "100%", role: "img", "aria-label": label },
    edges.toReversed().map((edge) => line(edge, place, most)),
    nodes.map(({ name }) => box(name, ...place.get(name))),
  );
  return element("div", { class: "chart" }, drawn);
}

function line({ sender, receiver, value, label, bend }, place, most) {
  const [[x1, y1], [x2, y2]] = [place.get(sender), place.get(receiver)];
  // The control point of a parabola is twice as far aside as its middle.
  const step = (2 * STEP * bend) / (Math.hypot(x2 - x1, y2 - y1) || 1);
  const [x, y] = [(x1 + x2) / 2 + (y2 - y1) * step, (y1 + y2) / 2 + (x1 - x2) * step];
  const title = drawing("title", {}, `${sender} → ${`${receiver} ${label}`.trim()}: ${number(value)}`);
  const drawn = drawing("path", { d: `M ${x1} ${y1} Q ${x} ${y} ${x2} ${y2}` }, title);
  drawn.style.stroke = value < 0 ? "var(--lowers)" : "var(--raises)";
  drawn.style.strokeWidth = String(1 + 5 * Math.sqrt(Math.abs(value) / most));
  return drawn;
}

function box(name, x, y) {
  const width = 7.2 * name.length + 8;
  return drawing(
    "g",
    {},
    drawing("rect", { x: x - width / 2, y: y - 9, width, height: 18, rx: 4 }),
    drawing("text", { x, y: y + 4, "text-anchor": "middle" }, name),
  );
}
