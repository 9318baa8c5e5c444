"""The words for a set of cells in an answer: compared with random sets, and as a circuit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from nnterp_mcp.contract import Measured
from nnterp_mcp.formatting import brief, number, plural, quoted
from nnterp_mcp.table import Column, Kind, Table, tabulate
from nnterp_mcp.toolset.patch_activations.result import (
    MemberLoss,
    PatchActivationsResult,
    PatchedCell,
    PatchedSet,
    effect_name,
    metric_column,
)

_NAMED = 6
"""Cells of a set that a sentence names."""

MEMBERS = 20
"""Cells of a circuit whose loss the profile shows."""

_MATCHED = "random sets of as many features about as active"
_DIRECTIONS = "random directions of equal norm"

_NO_COMPARISON = "No control: there are too few other cells for 20 different random sets."


def measured(cell: PatchedCell | PatchedSet) -> Measured:
    """The number that an answer gives of a cell: recovery where it is defined, else the metric."""
    return cell.metric if cell.recovery is None else cell.recovery


def set_sentence(found: PatchedSet, result: PatchActivationsResult) -> str:
    """The effect of the cells together, and of random sets."""
    names = ", ".join(found.cells[:_NAMED])
    more = f" and {len(found.cells) - _NAMED} more" if len(found.cells) > _NAMED else ""
    if not found.named and not found.controls:
        return _NO_COMPARISON
    if found.dictionary is not None:
        return _features_sentence(found, result)
    aim = "restore the answer" if result.direction == "denoising" and result.corrupted else "break the answer"
    which = (
        f"the {plural(len(found.cells), 'named cell')}" if found.named else
        f"the {plural(len(found.cells), 'cell')} with the largest effects that {aim}"
    )  # fmt: skip
    value = f"{effect_name(result)} {number(brief(measured(found).mean))}{over_prompts(result) if found.named else ''}"
    put = f"{replacement(result)} at {which} together ({names}{more}){along_paths(result)}"
    return f"{put}: {value}. {_compared(found, result)}"


def _features_sentence(found: PatchedSet, result: PatchActivationsResult) -> str:
    """The effect of features together, next to matched features and to random directions."""
    names = ", ".join(name.removeprefix("feature ") for name in found.cells[:_NAMED])
    more = f" and {len(found.cells) - _NAMED} more" if len(found.cells) > _NAMED else ""
    many = "s" if len(found.cells) > 1 else ""
    which = f"feature{many} {names}{more} of {quoted(found.dictionary or '')}{' together' if many else ''}"
    put = replacement(result).replace("states", f"activations of {which}", 1)
    if result.corrupted is None:
        put = f"Zeros in place of {which}"
    value = f"{effect_name(result)} {number(brief(measured(found).mean))}{over_prompts(result)}"
    recovers = found.recovery is not None
    compared = [
        _beside(found, result, found.controls, found.control_recoveries if recovers else [], _MATCHED),
        _beside(found, result, found.directions, found.direction_recoveries if recovers else [], _DIRECTIONS),
    ]
    return f"{put}: {value}. {' '.join(compared)}"


def _beside(
    found: PatchedSet, result: PatchActivationsResult, metrics: Sequence[float], recoveries: Sequence[float], sets: str
) -> str:
    """The comparison with one kind of control."""
    values = recoveries or metrics
    if len(values) < 2:
        return f"There are no {sets} to compare with."
    spread = f"mean {number(brief(fmean(values)))}, sd {number(brief(stdev(values)))}"
    reaching = exceeds(found, result, metrics)
    if not reaching:
        return f"None of {len(values)} {sets} has as large an effect ({spread})."
    verb = "has" if reaching == 1 else "have"
    return f"{reaching} of {len(values)} {sets} {verb} as large an effect ({spread})."


def exceeds(found: PatchedSet, result: PatchActivationsResult, controls: Sequence[float]) -> int:
    """The number of controls whose effect, in the direction of the set's own, is at least as large."""
    base = result.unpatched.mean
    effect = found.metric.mean - base
    sign = 1 if effect > 0 else -1
    return sum(sign * (value - base) >= abs(effect) for value in controls)


def _compared(found: PatchedSet, result: PatchActivationsResult) -> str:
    if not found.controls:
        return _NO_COMPARISON
    values = found.control_recoveries if found.recovery is not None else found.controls
    spread = f"mean {number(brief(fmean(values)))}, sd {number(brief(stdev(values)))}"
    layer = "layer" if found.matched else "nearest layer"
    sets = f"{len(values)} random sets of as many cells, matched by site and {layer}"
    reaching = exceeds(found, result, found.controls)
    if not reaching:
        return f"None of {sets}, has as large an effect ({spread})."
    return f"It does not exceed its control: {reaching} of {sets}, have as large an effect ({spread})."


def circuit_sentence(result: PatchActivationsResult) -> str:
    """The three measures of a circuit; empty where they were not asked for or are not defined."""
    found = result.patched_set and result.patched_set.circuit
    if not found:
        return ""
    least = _least(result)
    randoms = ""
    if found.random_faithfulness:
        randoms = (
            f" Random sets have a faithfulness of {_range(found.random_faithfulness)} and a completeness of "
            f"{_range(found.random_completeness)}."
        )
    whole, completeness = number(brief(found.faithfulness.mean)), number(brief(found.completeness.mean))
    return (
        f" Faithfulness {whole}: with the set alone intact, the metric is at that share of the way from none of the "
        f"{found.total} cells intact ({number(brief(found.none.mean))}) to all ({number(brief(found.intact.mean))}). "
        f"Completeness {completeness}: the same with all cells but the set intact; a complete set leaves 0.{randoms} "
        f"Minimality {number(brief(least.loss.mean))}: faithfulness lost without {least.cell}, the least of the set."
    )


def _least(result: PatchActivationsResult) -> MemberLoss:
    return min(result.members, key=lambda member: member.loss.mean)


def _range(values: Sequence[float]) -> str:
    return f"{number(brief(min(values)))} to {number(brief(max(values)))}"


def replacement(result: PatchActivationsResult) -> str:
    """The replacement, as a subject."""
    if result.corrupted is None:
        return result.corruption
    return "Clean states in corrupted runs" if result.direction == "denoising" else "Corrupted states in clean runs"


def along_paths(result: PatchActivationsResult) -> str:
    """The paths along which patches act, behind a comma; empty for all."""
    return f", {result.paths}" if result.paths else ""


def over_prompts(result: PatchActivationsResult) -> str:
    """That a number is a mean, where there are several prompts."""
    return "" if result.prompts == 1 else f" in the mean of {result.prompts} prompts"


@dataclass(frozen=True)
class _Measure:
    """A row of a set's table."""

    name: str
    value: Measured
    randoms: Sequence[float]
    along: Sequence[float] = ()


def measures_table(found: PatchedSet, result: PatchActivationsResult) -> Table:
    """A row for each measure of a set, with the range of random sets."""
    rows = [_Measure(metric_column(result), found.metric, found.controls, found.directions)]
    if found.recovery is not None:
        rows.append(_Measure("recovery", found.recovery, found.control_recoveries, found.direction_recoveries))
    if found.circuit is not None:
        one = found.circuit
        rows.append(_Measure("faithfulness", one.faithfulness, one.random_faithfulness))
        rows.append(_Measure("completeness", one.completeness, one.random_completeness))
        rows.append(_Measure("minimality", _least(result).loss, ()))
    columns: list[Column[_Measure]] = [
        Column("of the set", lambda row: row.name),
        Column("value", lambda row: row.value.mean, Kind.BRIEF),
        Column("95 %", lambda row: row.value, Kind.INTERVAL, found.metric.low is not None),
        Column(
            f"{len(found.controls)} random sets",
            lambda row: [brief(min(row.randoms)), "to", brief(max(row.randoms))] if row.randoms else None,
            shown=bool(found.controls),
        ),
        Column(
            f"{len(found.directions)} random directions",
            lambda row: [brief(min(row.along)), "to", brief(max(row.along))] if row.along else None,
            shown=bool(found.directions),
        ),
    ]
    return tabulate(columns, rows)


def members_table(result: PatchActivationsResult) -> Table | None:
    """The faithfulness that a circuit loses with each cell, the largest loss first; None without a circuit."""
    if not result.members:
        return None
    columns: list[Column[MemberLoss]] = [
        Column("without", lambda member: member.cell),
        Column("faithfulness lost", lambda member: member.loss.mean, Kind.BRIEF),
        Column("95 %", lambda member: member.loss, Kind.INTERVAL, result.members[0].loss.low is not None),
    ]
    return tabulate(columns, sorted(result.members, key=lambda member: -member.loss.mean)[:MEMBERS])
