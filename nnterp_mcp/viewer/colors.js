/** Colours of numbers, from the stops that pictures have too: one scale for amounts, one for what has two signs. */

import { diverging as SIDES, sequential as AMOUNTS } from "./style.js";

/** The colours of a figure's scale; with a centre its two sides tell what lowers from what raises. */
export function scale({ low, high, centre = null }) {
  const stops = (centre === null ? AMOUNTS : SIDES).map(parts);
  return {
    low,
    high,
    stops: stops.map(css),
    paint(node, value) {
      const share = high === low ? 0 : Math.max(0, Math.min(1, (value - low) / (high - low)));
      const color = between(stops, share);
      node.style.background = css(color);
      node.style.color = ink(color);
    },
  };
}

/** From `low` to `high`, dark to bright. */
export function sequential(low, high) {
  return scale({ low, high });
}

/** Blue below `middle`, red above it, as far on either side. */
export function diverging(middle, reach) {
  return scale({ low: middle - reach, high: middle + reach, centre: middle });
}

function parts(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

function between(stops, share) {
  const place = share * (stops.length - 1);
  const below = Math.min(Math.floor(place), stops.length - 2);
  return stops[below].map((start, channel) => start + (place - below) * (stops[below + 1][channel] - start));
}

function css(color) {
  return `rgb(${color.map(Math.round).join(" ")})`;
}

/** Black or white, whichever has the higher contrast (WCAG's relative luminance). */
function ink(color) {
  const [red, green, blue] = color.map((level) => {
    const part = level / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  const luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  return 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 ? "#fff" : "#000";
}
