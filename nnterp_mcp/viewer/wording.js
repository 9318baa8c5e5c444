/** How numbers and tokens are written. */

import { element } from "./elements.js";
import { marks } from "./style.js";

const UNSEEN = /([\p{White_Space}\p{Cc}\p{Cf}])/u;
const BYTE = /(<0x[0-9A-F]{2}>)/;

/** A number with three digits that mean something. */
export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(Math.max(0, digits - 2));
  return String(Number(value.toPrecision(digits)));
}

/** A number as cells show it, to a hundredth, a tenth from 10 on; nothing where that is nothing. */
export function hundredths(value) {
  if (value === null || value === undefined || Math.abs(value) < 0.005) return "";
  const text = value.toFixed(Math.abs(value) < 10 ? 2 : 1);
  return text.replace(/^(-?)0\./, "$1.").replace("-", "−");
}

/** A token in quotes, as sentences say it. */
export function quoted(token) {
  return JSON.stringify(token);
}

/** A token as cells show it: what would not be seen is drawn, fainter where there is something beside it. */
export function token(text) {
  const parts = text.split(UNSEEN).filter((part) => part !== "");
  const faint = parts.some((part) => !UNSEEN.test(part)) ? "white" : "white alone";
  const shows = parts.map((part) => (UNSEEN.test(part) ? element("span", { class: faint }, seen(part)) : apart(part)));
  return element("bdi", { class: "token", dir: BYTE.test(text) ? "ltr" : null }, shows);
}

/** Bytes keep their own direction among letters that are read from the right. */
function apart(text) {
  return text.split(BYTE).map((part) => (BYTE.test(part) ? element("bdi", {}, part) : part));
}

function seen(character) {
  return marks[character] ?? `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

/** A count with its noun. */
export function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** A cell of a table as text: parts one after the other, those of pairs side by side, texts among them in quotes. */
export function plain(value) {
  if (Array.isArray(value)) return value.map((part) => (Array.isArray(part) ? part.map(leaf).join(" ") : leaf(part))).join(", ");
  return typeof value === "string" ? value : leaf(value);
}

function leaf(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "string") return quoted(value);
  if (Array.isArray(value)) return plain(value);
  return typeof value === "number" ? number(value, 6) : String(value);
}
