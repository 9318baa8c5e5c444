/** Next-token distributions: their top tokens as bars, and what of them can colour a grid. */

import { sequential } from "./colors.js";
import { element, facts } from "./elements.js";
import { number, quoted, token } from "./wording.js";

/** The top tokens with their probabilities, and the measures beside them. */
export function predictions(top, measures) {
  return element("div", {}, element("ol", { class: "bars" }, top.map(bar)), facts(measures));
}

function bar([text, probability]) {
  const length = element("span", { class: "bar", "aria-hidden": "true" });
  length.style.width = `${(100 * probability).toFixed(1)}%`;
  return element(
    "li",
    {},
    element("span", { class: "what", "aria-label": quoted(text) }, token(text)),
    element("span", { class: "track" }, length),
    element("span", { class: "much" }, number(probability)),
  );
}

/** Colours by the top token's probability, by entropy, and by each target's probability. */
export function modes(names, tracked) {
  return [
    { name: "probability of the top token", of: ({ top }) => top[0]?.[1], ramp: () => sequential(0, 1) },
    { name: "entropy (nats)", of: ({ entropy }) => entropy },
    ...names.map((name, place) => ({ name: `probability of ${name}`, of: (item) => item[tracked][place]?.[0] })),
  ];
}

/** The targets' probabilities and ranks, as names and values. */
export function targets(names, values) {
  return names.map((name, place) => {
    const [probability, rank] = values[place] ?? [];
    return [name, rank ? `${number(probability)}, rank ${rank}` : null];
  });
}

/** A distribution in words, with its entropy where it is known. */
export function spoken(top, entropy = null) {
  const tokens = top.slice(0, 3).map(([text, probability]) => `${quoted(text)} ${number(probability)}`);
  return tokens.join(", ") + (entropy === null ? "" : `; entropy ${number(entropy)} nats`);
}

/** The header of a token's column or row. */
export function place(text, position) {
  const shows = element("span", { class: "place" }, element("small", {}, String(position)), token(text));
  return { shows, says: `position ${position} ${quoted(text)}` };
}

/** The header of a layer. */
export function layerHead(layer) {
  return { shows: String(layer), says: `layer ${layer}` };
}
