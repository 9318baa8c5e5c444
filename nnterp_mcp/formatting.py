"""Numbers, sizes, durations and text as answers and errors show them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

_LISTED = 5
"""Runs of numbers that are listed."""

SIGNIFICANT = 3
"""Digits that a number keeps in an answer."""

_NOTHING = 1e-6
"""Largest rounding error by which a share that is 1 may fall short of it."""

_UNSEEN = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0d-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff\\ud800-\\udfff\\U000e0000-\\U000e007f]"
)
"""Controls of terminals (C0, C1), separators of lines, controls of direction, tags, halves of characters."""


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Plain data with every leaf, and every key, passed through a function."""
    if isinstance(value, dict):
        return {change(key): map_leaves(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_leaves(item, change) for item in value]
    return change(value)


def rounded(value: Any, digits: int = SIGNIFICANT) -> Any:
    """Rounds every float in plain data to so many significant digits, none from below to 1: 0.9998 stays."""

    def shorten(leaf: Any) -> Any:
        if not isinstance(leaf, float) or leaf == 0.0 or not math.isfinite(leaf):
            return leaf
        near = round(leaf, digits - 1 - math.floor(math.log10(abs(leaf))))
        below = 1 - abs(leaf)
        return round(leaf, -math.floor(math.log10(below))) if abs(near) == 1.0 and below > _NOTHING else near

    return map_leaves(value, shorten)


def finite(value: Any) -> Any:
    """Replaces numbers that are not finite, which JSON cannot write, by null."""
    return map_leaves(value, lambda leaf: None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf)


def number(value: int | float) -> str:
    """A number with `SIGNIFICANT` digits: 0.768, 10.4, 3.1e-05, 12000."""
    if isinstance(value, int):
        return str(value)
    short = rounded(float(value))
    if not math.isfinite(short):
        return str(short)
    if short == int(short) and abs(short) < 1e15:
        return str(int(short))
    return f"{short:.{SIGNIFICANT}g}" if abs(short) < 1e-3 or abs(short) >= 1000 else str(short)


def coarse(value: float) -> float:
    """A number among many: two digits after the point, or below 0.01 one that means something; 0 below 0.0001."""
    if abs(value) < 0.01:
        return float(f"{value:.1g}") if abs(value) >= 1e-4 else 0.0
    return round(value, 2 if abs(value) < 10 else 1)


def brief(value: float) -> float:
    """Two digits after the point, or two that mean something."""
    return round(value, 2) if abs(value) >= 0.1 else float(f"{value:.2g}")


def percent(share: float) -> str:
    """A share of 1 in per cent."""
    return f"{100 * rounded(share):.5g} %"


def size(count: float) -> str:
    """Bytes in decimal units: 538 MB, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{number(float(round(count)) if count >= 100 else count)} {unit}"
        count /= 1000
    return f"{number(count)} TB"


def seconds(duration: float) -> str:
    """A duration: 85 ms, 3.2 s, 4 min 10 s."""
    if duration < 1:
        return f"{duration * 1000:.0f} ms"
    if duration < 120:
        return f"{number(duration)} s"
    return f"{int(duration // 60)} min {int(duration % 60)} s"


def escaped(text: str) -> str:
    """Text with effective invisible characters escaped as in JSON: `\\u001b`.

    These steer a terminal, end a line, turn the direction of what follows, or hide text from a person but not from a
    model. Line feeds and tabs stay.
    """
    return _UNSEEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def escaped_data(value: Any) -> Any:
    """Escapes the texts of plain data; a carriage return, which ends a line as data, stays."""
    return map_leaves(value, lambda leaf: "\r".join(map(escaped, leaf.split("\r"))) if isinstance(leaf, str) else leaf)


def on_one_line(text: str) -> str:
    """Escapes line feeds, so that a text stays on its line."""
    return text.replace("\n", "\\n")


def quoted(text: str) -> str:
    """Text in double quotes with control characters escaped."""
    return escaped(json.dumps(text, ensure_ascii=False))


def elided(text: str, limit: int = 24) -> str:
    """Text whose end is left out past `limit` characters: a token can be a run of hundreds of spaces."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 layer, 30 layers."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short, `0-3, 8`; where there are many runs, the middle is left out and all are counted."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    listed = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    if len(listed) <= _LISTED:
        return ", ".join(listed)
    return f"{', '.join(listed[: _LISTED - 1])}, … {listed[-1]} ({len(numbers)})"


def magnitude(count: int) -> str:
    """A count of parameters: 576, 36.9 k, 134.5 M, 7.24 G."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return str(count)


def spread(items: Sequence[int], keep: Sequence[int], count: int) -> list[int]:
    """Chooses at most `count` of `items`: those in `keep` first (as listed), then evenly spaced ones, in order."""
    if len(items) <= count:
        return list(items)
    chosen = {item for item in list(dict.fromkeys(keep))[:count] if item in items}
    evenly = [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)] if count > 1 else [items[-1]]
    for item in evenly:
        if len(chosen) >= count:
            break
        chosen.add(item)
    return sorted(chosen, key=list(items).index)


def dominating(token: str, place: str, layer: int | None, ratio: float) -> str:
    """The warning that one token's state dominates a mean over tokens.

    Args:
        token: The token.
        place: Its position and prompt, in words.
        layer: The layer; None for the embeddings.
        ratio: The norm of its state over the median norm of the averaged states.
    """
    where = "in the embeddings" if layer is None else f"at layer {layer}"
    return (
        f"The token {quoted(elided(token))} ({place}) dominates the mean {where}: the norm of its state is "
        f"{number(ratio)} times the median norm of the states averaged."
    )


def probability(value: float) -> float | str:
    """A probability as answers give it: below one in a million only that is said."""
    return value if value == 0 or value >= 1e-6 else "<1e-6"
