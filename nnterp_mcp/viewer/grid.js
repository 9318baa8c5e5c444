/** A grid of cells that one walks with arrow keys (the ARIA grid pattern); what is large is drawn a window at a time. */

import { element, scroller } from "./elements.js";

const ROWS = 64;
const COLUMNS = 48;
const LEAP = 10;

/**
 * @typedef {{value: number|null, shows: string|Node, says: string}} Cell
 *   value gives its colour, shows stands in it, says describes it in full.
 */

export class Grid {
  /**
   * @param {object} options
   * @param {string} options.label what the grid shows, for who does not see it
   * @param {string} options.corner what rows and columns are
   * @param {{shows: string|Node, says: string}[]} options.rows their headers
   * @param {{shows: string|Node, says: string}[]} options.columns theirs
   * @param {(row: number, column: number) => Cell|null} options.cell what stands at a place
   * @param {(window: object) => Promise<void>} [options.need] brings what a window shows before it is drawn
   * @param {(row: number, column: number) => void} options.onSelect hears of the selected cell
   */
  constructor(options) {
    Object.assign(this, { need: async () => {}, ramp: null, row: 0, column: 0, top: 0, left: 0 }, options);
    this.table = element("table", { role: "grid", class: "grid", "aria-label": this.label });
    this.table.setAttribute("aria-rowcount", this.rows.length + 1);
    this.table.setAttribute("aria-colcount", this.columns.length + 1);
    this.tooltip = element("div", { class: "tooltip", "aria-hidden": "true", hidden: true });
    this.pager = element("nav", { class: "pager", "aria-label": `Parts of the grid: ${this.label}` });
    this.node = element("div", { class: "grid-frame" }, this.pager, scroller(element("div", { class: "scroll" }, this.table)));
    this.node.append(this.tooltip);
    this.listen();
    const seen = new ResizeObserver(() => this.reveal() && seen.disconnect());
    seen.observe(this.table);
  }

  /** Scrolls the box, and not the page, to the selected cell, once it has a size. */
  reveal() {
    const box = this.table.parentElement;
    const node = this.table.querySelector('[aria-selected="true"]');
    if (!node || box.clientWidth === 0) return false;
    box.scrollLeft = node.offsetLeft + node.offsetWidth / 2 - box.clientWidth / 2;
    box.scrollTop = node.offsetTop + node.offsetHeight / 2 - box.clientHeight / 2;
    return true;
  }

  listen() {
    this.table.addEventListener("keydown", (event) => this.walk(event));
    this.table.addEventListener("click", (event) => this.choose(event.target));
    this.table.addEventListener("pointerover", (event) => this.hint(event.target));
    this.table.addEventListener("pointerleave", () => this.hint(null));
    this.table.addEventListener("focusin", (event) => this.choose(event.target));
  }

  /** Draws the window that holds the selected cell. */
  async draw() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const window = {
      rows: range(this.top, Math.min(this.top + ROWS, this.rows.length)),
      columns: range(this.left, Math.min(this.left + COLUMNS, this.columns.length)),
    };
    await this.need(window);
    if (turn !== this.turn) return;
    const heads = window.columns.map((column) => head(this.columns[column], "col", { "aria-colindex": column + 2 }));
    const corner = element("th", { scope: "col", class: "corner", "aria-colindex": 1 }, this.corner);
    const rows = window.rows.map((row) => this.drawRow(row, window.columns));
    this.table.replaceChildren(
      element("thead", {}, element("tr", { "aria-rowindex": 1 }, corner, heads)),
      element("tbody", {}, rows),
    );
    this.drawPager();
    this.paint();
    this.mark(false);
  }

  drawRow(row, columns) {
    const cells = columns.map((column) => this.drawCell(row, column));
    return element("tr", { "aria-rowindex": row + 2 }, head(this.rows[row], "row", { "aria-colindex": 1 }), cells);
  }

  drawCell(row, column) {
    const cell = this.cell(row, column);
    const attributes = { role: "gridcell", tabindex: -1, "aria-selected": "false", "aria-colindex": column + 2 };
    const node = element("td", attributes, cell ? cell.shows : "");
    node.setAttribute("aria-label", cell ? cell.says : "nothing here");
    node.dataset.row = row;
    node.dataset.column = column;
    return node;
  }

  drawPager() {
    const steps = [
      ["rows", "top", ROWS, this.rows.length],
      ["columns", "left", COLUMNS, this.columns.length],
    ].filter(([, , size, count]) => count > size);
    this.pager.hidden = steps.length === 0;
    this.pager.replaceChildren(...steps.map((step) => this.steps(...step)));
  }

  steps(name, edge, size, count) {
    const go = (to) => () => this.turnTo(edge, to);
    const from = this[edge];
    const button = (sign, says, to, none) => element("button", { onclick: go(to), disabled: none, "aria-label": says }, sign);
    return element(
      "span",
      { class: "steps" },
      button("‹", `previous ${name}`, Math.max(0, from - size), from === 0),
      `${name} ${from} to ${Math.min(from + size, count) - 1} of ${count}`,
      button("›", `next ${name}`, Math.min(from + size, count - size), from + size >= count),
    );
  }

  async turnTo(edge, to) {
    this[edge] = to;
    if (edge === "top") this.row = to;
    else this.column = to;
    await this.draw();
    this.onSelect(this.row, this.column);
  }

  /** Colours the cells anew. */
  paint() {
    for (const node of this.table.querySelectorAll("td")) {
      const value = this.cell(Number(node.dataset.row), Number(node.dataset.column))?.value ?? null;
      node.classList.toggle("empty", value === null);
      if (value !== null && this.ramp) this.ramp.paint(node, value);
      else node.removeAttribute("style");
    }
  }

  /** Selects a cell, and brings it into the window. */
  async select(row, column) {
    if (this.place(row, column)) await this.draw();
    this.mark(true);
    this.onSelect(this.row, this.column);
  }

  /** Makes a cell the selected one, and says whether the window has to move for it. */
  place(row, column) {
    this.row = Math.max(0, Math.min(row, this.rows.length - 1));
    this.column = Math.max(0, Math.min(column, this.columns.length - 1));
    const top = windowAt(this.row, this.top, ROWS, this.rows.length);
    const left = windowAt(this.column, this.left, COLUMNS, this.columns.length);
    const moved = top !== this.top || left !== this.left;
    Object.assign(this, { top, left });
    return moved;
  }

  mark(focus) {
    for (const node of this.table.querySelectorAll('[aria-selected="true"]')) {
      node.setAttribute("aria-selected", "false");
      node.tabIndex = -1;
    }
    const node = this.table.querySelector(`td[data-row="${this.row}"][data-column="${this.column}"]`);
    if (!node) return;
    node.setAttribute("aria-selected", "true");
    node.tabIndex = 0;
    if (focus && document.activeElement !== node) node.focus();
  }

  choose(target) {
    const node = target.closest("td");
    if (!node) return;
    const [row, column] = [Number(node.dataset.row), Number(node.dataset.column)];
    if (row !== this.row || column !== this.column) this.select(row, column);
    else if (document.activeElement !== node) node.focus();
  }

  walk(event) {
    const to = this.destination(event);
    if (event.key === "Escape") this.hint(null);
    if (!to) return;
    event.preventDefault();
    this.select(...to);
  }

  destination({ key, ctrlKey, metaKey }) {
    const { row, column } = this;
    const all = ctrlKey || metaKey;
    const [lastRow, lastColumn] = [this.rows.length - 1, this.columns.length - 1];
    return {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      Home: [all ? 0 : row, 0],
      End: [all ? lastRow : row, lastColumn],
      PageUp: [row - LEAP, column],
      PageDown: [row + LEAP, column],
    }[key];
  }

  /** Says beside the pointer what a cell holds. */
  hint(target) {
    const node = target?.closest("td");
    const cell = node && this.cell(Number(node.dataset.row), Number(node.dataset.column));
    this.tooltip.hidden = !cell;
    if (!cell) return;
    this.tooltip.textContent = cell.says;
    const box = node.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - this.tooltip.offsetWidth - 8);
    const below = box.bottom + 6;
    const fits = below + this.tooltip.offsetHeight < document.documentElement.clientHeight;
    this.tooltip.style.left = `${Math.max(4, left)}px`;
    this.tooltip.style.top = `${fits ? below : box.top - this.tooltip.offsetHeight - 6}px`;
  }
}

function head({ shows, says }, scope, attributes) {
  return element("th", { scope, "aria-label": says, ...attributes }, shows instanceof Node ? shows.cloneNode(true) : shows);
}

/** Where the window begins that shows a place: the present one if it does, else a page of it; the last page is full. */
function windowAt(place, from, size, count) {
  if (place >= from && place < from + size) return from;
  return Math.max(0, Math.min(place - (place % size), count - size));
}

function range(from, to) {
  return Array.from({ length: to - from }, (_, index) => from + index);
}
