/** Any part of a run as a plain table, a page at a time. */

import { choice, element, scroller } from "./elements.js";
import { plain } from "./wording.js";

const ROWS = 50;

/** A table with its columns' names. */
export function table({ columns, rows }, label) {
  const head = columns.map((name) => element("th", { scope: "col" }, name));
  const body = rows.map((row) => element("tr", {}, row.map((value) => element("td", {}, plain(value)))));
  const box = element(
    "div",
    { class: "scroll plain", tabindex: 0, role: "region", "aria-label": label },
    element("table", {}, element("thead", {}, element("tr", {}, head)), element("tbody", {}, body)),
  );
  return element("div", { class: "table" }, scroller(box));
}

/** Everything that a run holds, part by part; nothing is read before it is opened. */
export function allNumbers(run) {
  const place = element("div", {});
  const box = element("details", { class: "all" }, element("summary", {}, "All numbers of the run"), place);
  box.addEventListener("toggle", () => box.open && !place.hasChildNodes() && open(run, place), { once: false });
  return box;
}

async function open(run, place) {
  try {
    const parts = await run.parts();
    const page = element("div", {});
    place.replaceChildren(choice("Part", parts, 0, (index) => show(run, parts[index], 0, page)), page);
    await show(run, parts[0], 0, page);
  } catch (error) {
    place.replaceChildren(element("p", { class: "trouble" }, error.message));
  }
}

async function show(run, part, offset, place) {
  place.setAttribute("aria-busy", "true");
  try {
    const { rows, columns, total } = await run.page(part, { offset, limit: ROWS });
    const content = { columns, rows: rows.map((row) => columns.map((name) => row[name])) };
    place.replaceChildren(pager(offset, total, (to) => show(run, part, to, place)), table(content, part));
  } catch (error) {
    place.replaceChildren(element("p", { class: "trouble" }, error.message));
  }
  place.removeAttribute("aria-busy");
}

function pager(offset, total, go) {
  const button = (sign, says, to) =>
    element("button", { onclick: () => go(to), disabled: to < 0 || to >= total, "aria-label": says }, sign);
  return element(
    "nav",
    { class: "pager", "aria-label": "Pages of the table" },
    button("‹", "previous rows", offset - ROWS),
    total ? `rows ${offset} to ${Math.min(offset + ROWS, total) - 1} of ${total}` : "no rows",
    button("›", "next rows", offset + ROWS),
  );
}
