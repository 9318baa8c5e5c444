"""Compares two results of one call, every number and text, field by field."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

_FLOOR = 0.01
"""Smaller numbers are compared as if they were this large: a probability of 1e-9 changes by rounding."""

_Leaf = tuple[str, str, Any, Any]
"""A field, the path to a leaf, and its value in either result."""


@dataclass
class FieldComparison:
    """One field of two results, over every place where it occurs.

    Attributes:
        field: Its path, such as `readings.layers.kl`.
        numbers: Numbers compared.
        texts: Texts, flags and lengths compared.
        largest: The largest absolute difference of two numbers.
        relative: The largest difference relative to the larger number (or to 0.01, if both are smaller).
        differing: Numbers beyond the tolerance, and texts that are not equal.
        example: The first of those: its path and both values.
    """

    field: str
    numbers: int = 0
    texts: int = 0
    largest: float = 0.0
    relative: float = 0.0
    differing: int = 0
    example: str | None = None

    def add(self, place: str, before: Any, after: Any, tolerance: float) -> None:
        """Compares what stands at one place."""
        if _is_number(before) and _is_number(after):
            self.numbers += 1
            differs = self._add_number(float(before), float(after), tolerance)
        else:
            self.texts += 1
            differs = before != after
        if differs:
            self.differing += 1
            self.example = self.example or f"{place}: {before!r} → {after!r}"

    def _add_number(self, before: float, after: float, tolerance: float) -> bool:
        if before == after or (math.isnan(before) and math.isnan(after)):
            return False
        apart = abs(before - after)
        apart = math.inf if math.isnan(apart) else apart
        beside = apart / max(abs(before), abs(after), _FLOOR) if math.isfinite(apart) else math.inf
        self.largest, self.relative = max(self.largest, apart), max(self.relative, beside)
        return beside > tolerance


def compare(before: Any, after: Any, tolerance: float, without: Collection[str] = ()) -> list[FieldComparison]:
    """Compares two results as plain data.

    Args:
        before: The first: dictionaries, lists, numbers, texts.
        after: The second.
        tolerance: The relative difference allowed between two numbers (relative to 0.01, if both are smaller).
        without: Names of fields to ignore.

    Returns:
        One comparison for each field that holds numbers or texts, in the order in which they first occur.
    """
    fields: dict[str, FieldComparison] = {}
    for field, place, first, second in _leaves("", "", before, after, frozenset(without)):
        fields.setdefault(field, FieldComparison(field)).add(place, first, second, tolerance)
    return list(fields.values())


def compare_arrays(
    field: str, before: Float[np.ndarray, "*axes"], after: Float[np.ndarray, "*others"], tolerance: float
) -> FieldComparison:
    """Compares two arrays, as `compare` does numbers."""
    import numpy as np

    found = FieldComparison(field)
    if before.shape != after.shape:
        found.add("shape", list(before.shape), list(after.shape), tolerance)
        return found
    first, second = before.astype(np.float64), after.astype(np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.nan_to_num(np.abs(first - second), nan=np.inf, posinf=np.inf))
        larger = np.maximum(np.maximum(np.abs(first), np.abs(second)), _FLOOR)
        beside = np.where(same | ~np.isfinite(apart), apart, apart / larger)
    beyond = beside > tolerance
    found.numbers = first.size
    found.largest, found.relative = float(apart.max(initial=0.0)), float(beside.max(initial=0.0))
    found.differing = int(beyond.sum())
    if found.differing:
        place = tuple(map(int, np.argwhere(beyond)[0]))
        found.example = f"{field}{list(place)}: {first[place]!r} → {second[place]!r}"
    return found


def _leaves(field: str, place: str, before: Any, after: Any, without: frozenset[str]) -> Iterator[_Leaf]:
    """Pairs of leaves of two results; the lengths of lists where they differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in dict.fromkeys([*before, *after]):
            if name not in without:
                inner, where = (field, f"{place}[{name}]") if isinstance(name, int) else _below(field, place, name)
                yield from _leaves(inner, where, before.get(name), after.get(name), without)
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple):
        if len(before) != len(after):
            yield field, f"{place} (length)", f"{len(before)} items", f"{len(after)} items"
        for index, (first, second) in enumerate(zip(before, after, strict=False)):
            yield from _leaves(field, f"{place}[{index}]", first, second, without)
    else:
        yield field, place, before, after


def _below(field: str, place: str, name: str) -> tuple[str, str]:
    return (f"{field}.{name}" if field else name), (f"{place}.{name}" if place else name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
