/** Colours of numbers: viridis for amounts, blue to orange for what has two sides. Both are safe for the colour-blind. */

const VIRIDIS = [
  [68, 1, 84], [72, 36, 117], [65, 68, 135], [53, 95, 141], [42, 120, 142], [33, 145, 140],
  [34, 168, 132], [68, 191, 112], [122, 209, 81], [189, 223, 38], [253, 231, 37],
];

/** A ramp from `low` to `high`, dark to bright. */
export function sequential(low, high) {
  return {
    low,
    high,
    stops: VIRIDIS.map((color) => css(color)),
    paint(node, value) {
      const color = viridis(share(value, low, high));
      node.style.background = css(color);
      node.style.color = ink(color);
    },
  };
}

/** Blue below `middle`, orange above it, as far on either side; the style's own colours, which follow the theme. */
export function diverging(middle, reach) {
  return {
    low: middle - reach,
    high: middle + reach,
    stops: ["var(--below)", "var(--middle)", "var(--above)"],
    paint(node, value) {
      const part = Math.max(-1, Math.min(1, (value - middle) / reach));
      const side = part < 0 ? "var(--below)" : "var(--above)";
      node.style.background = `color-mix(in oklab, ${side} ${number(Math.abs(part))}, var(--middle))`;
      node.style.color = "var(--on-sides)";
    },
  };
}

function number(part) {
  return `${(100 * part).toFixed(1)}%`;
}

function share(value, low, high) {
  return high === low ? 0 : Math.max(0, Math.min(1, (value - low) / (high - low)));
}

function viridis(part) {
  const place = part * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[below].map((start, channel) => start + (place - below) * (VIRIDIS[below + 1][channel] - start));
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
