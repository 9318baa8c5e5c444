/** Elements of the page. Text only ever becomes text: a token may look like markup. */

const SVG = "http://www.w3.org/2000/svg";

/** An element with its attributes and children; children are elements or texts. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for drawings. */
export function drawing(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** A labelled choice among texts; `onChoose` gets the index. */
export function choice(label, options, chosen, onChoose) {
  const select = element("select", { onchange: () => onChoose(select.selectedIndex) });
  select.append(...options.map((text, index) => element("option", { selected: index === chosen }, text)));
  return element("label", { class: "choice" }, `${label} `, select);
}

/** Names and values, one pair a line. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return element(
    "dl",
    { class: "facts" },
    shown.map(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
  );
}

/** A box that scrolls, with words below it for as long as more lies beyond an edge. */
export function scroller(box) {
  const more = element("p", { class: "more", "aria-hidden": "true" });
  const look = () => {
    const right = box.scrollLeft + box.clientWidth < box.scrollWidth - 2;
    const below = box.scrollTop + box.clientHeight < box.scrollHeight - 2;
    more.textContent = [right ? "more to the right →" : "", below ? "more below ↓" : ""].filter(Boolean).join("  ");
  };
  box.addEventListener("scroll", look, { passive: true });
  const sizes = new ResizeObserver(look);
  for (const node of [box, ...box.children]) sizes.observe(node);
  return [box, more];
}
