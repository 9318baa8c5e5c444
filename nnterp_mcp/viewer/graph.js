/** Nodes in rows with edges between them, as wide as they are strong: blue lowers, red raises. */

import { drawing, element } from "./elements.js";
import { number } from "./wording.js";

const [WIDTH, LEVEL, EDGE, ASIDE] = [640, 34, 20, 6];

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

function line({ sender, receiver, value, label, aside }, place, most) {
  const [[x1, y1], [x2, y2]] = [place.get(sender), place.get(receiver)];
  const step = (ASIDE * aside) / (Math.hypot(x2 - x1, y2 - y1) || 1);
  const [across, down] = [(y2 - y1) * step, (x1 - x2) * step];
  const ends = { x1: x1 + across, y1: y1 + down, x2: x2 + across, y2: y2 + down };
  const drawn = drawing("line", ends, drawing("title", {}, `${sender} → ${`${receiver} ${label}`.trim()}: ${number(value)}`));
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
