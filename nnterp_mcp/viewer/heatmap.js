/** A grid in colour, with the choice of what colours it, a legend, what is selected in words and in detail. */

import { sequential } from "./colors.js";
import { curve } from "./curve.js";
import { choice, element } from "./elements.js";
import { Grid } from "./grid.js";
import { number } from "./wording.js";

/**
 * @typedef {{name: string, of: (item: object) => number|null, ramp?: (values: () => number[]) => object}} Mode
 *   what colours the cells; without a ramp from 0 to the largest value
 */

export class Heatmap {
  /**
   * @param {object} options those of a grid, with items in the place of cells
   * @param {(row: number, column: number) => object|null} options.item what stands at a place
   * @param {(item: object, mode: Mode) => string|Node} options.shows
   * @param {(item: object) => string} options.says
   * @param {(item: object) => Node} options.details
   * @param {Mode[]} options.modes
   * @param {boolean} [options.curves] whether a column is a curve over the rows
   * @param {(row: number, column: number) => void} [options.onSelect]
   * @param {Node} [options.beside] what stands beside the grid, below the details
   */
  constructor(options) {
    Object.assign(this, { curves: true, onSelect: () => {} }, options);
    this.mode = this.modes[0];
    this.grid = new Grid({ ...options, cell: this.cell.bind(this), onSelect: this.select.bind(this) });
    this.legend = element("div", { class: "legend" });
    this.selected = element("p", { class: "selected", role: "status", "aria-live": "polite" });
    this.panel = element("section", { class: "details", "aria-label": "Details of the selected cell" });
    this.node = element(
      "div",
      { class: "heatmap" },
      element("div", { class: "controls" }, this.modeChoice(), this.legend),
      element("div", { class: "columns" }, this.grid.node, this.side()),
    );
  }

  side() {
    const side = element("div", { class: "side" }, this.selected, this.panel);
    if (this.beside) side.append(this.beside);
    side.classList.toggle("wide", Boolean(this.beside));
    return side;
  }

  modeChoice() {
    if (this.modes.length === 1) return element("span", { class: "choice" }, `Colour: ${this.mode.name}`);
    const names = this.modes.map(({ name }) => name);
    return choice("Colour", names, 0, (index) => {
      this.mode = this.modes[index];
      this.draw();
    });
  }

  cell(row, column) {
    const item = this.item(row, column);
    if (!item) return null;
    return { value: this.mode.of(item) ?? null, shows: this.shows(item, this.mode), says: this.says(item) };
  }

  /** Draws the grid with a cell selected, the one that was if none is named. */
  async draw(row = this.grid.row, column = this.grid.column) {
    this.grid.place(row, column);
    await this.grid.draw();
    this.paint();
    this.select(this.grid.row, this.grid.column);
  }

  paint() {
    this.grid.ramp = this.mode.ramp?.(() => this.values()) ?? sequential(0, largest(this.values()));
    this.grid.paint();
    const { low, high, stops } = this.grid.ramp;
    const bar = element("span", { class: "ramp", "aria-hidden": "true" });
    bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    const beyond = this.values().some((value) => value > high) ? " and more" : "";
    this.legend.replaceChildren(number(low), bar, `${number(high)}${beyond}`);
    this.legend.setAttribute("aria-label", `${this.mode.name} from ${number(low)} to ${number(high)}`);
    this.legend.setAttribute("role", "img");
  }

  values() {
    const values = [];
    for (let row = 0; row < this.grid.rows.length; row++)
      for (let column = 0; column < this.grid.columns.length; column++) {
        const item = this.item(row, column);
        const value = item && this.mode.of(item);
        if (typeof value === "number" && Number.isFinite(value)) values.push(value);
      }
    return values;
  }

  select(row, column) {
    const item = this.item(row, column);
    if (!item) {
      this.selected.textContent = "nothing here";
      this.panel.replaceChildren();
      return;
    }
    this.selected.textContent = this.says(item);
    this.panel.replaceChildren(this.details(item), ...(this.curves ? [this.curve(row, column)] : []));
    this.onSelect(row, column);
  }

  /** A column from its lowest row, the first layer, upwards. */
  curve(selected, column) {
    const points = this.grid.rows
      .map((head, row) => {
        const item = this.item(row, column);
        return { at: head.says, value: item ? (this.mode.of(item) ?? null) : null };
      })
      .reverse();
    return curve(points, points.length - 1 - selected, this.mode.name);
  }
}

/** The largest of values, and something above 0 where there is none. */
function largest(values) {
  return values.reduce((one, other) => Math.max(one, other), 1e-9);
}
