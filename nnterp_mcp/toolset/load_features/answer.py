"""Summarizes the fit of each loaded dictionary, and any evidence against its hook point."""

from __future__ import annotations

from nnterp_mcp.formatting import number, plural, quoted, size
from nnterp_mcp.render import left_out
from nnterp_mcp.table import Column, Table, tabulate
from nnterp_mcp.toolset.load_features.result import LoadedLayer, LoadFeaturesAnswer, LoadFeaturesResult

_SHOWN = 8
_FAULTS = 3
_COLUMNS: list[Column[LoadedLayer]] = [
    Column("reads", lambda one: one.fit.place),
    Column("features", lambda one: one.features),
    Column("activation", lambda one: one.activation),
    Column("L0", lambda one: one.fit.l0),
    Column("declared", lambda one: one.declared_l0),
    Column("FVU", lambda one: one.fit.fvu),
    Column("cosine", lambda one: one.fit.cosine),
    Column("loss recovered", lambda one: one.recovered),
    Column("silent", lambda one: one.silent),
]


def digest(result: LoadFeaturesResult) -> LoadFeaturesAnswer:
    """A row for each dictionary: its fit."""
    if result.freed is not None:
        finding = f"{quoted(result.name)} is unloaded from {result.model}: {size(result.freed)} of memory are freed."
        return LoadFeaturesAnswer(
            finding=finding, model=result.model, total=0, truncated=False, table=Table(columns=[], rows=[])
        )
    faulty = [one for one in result.layers if one.faults or one.better]
    shown = [*faulty, *(one for one in result.layers if one not in faulty)][:_SHOWN]
    shown.sort(key=lambda one: -1 if one.layer is None else one.layer)
    return LoadFeaturesAnswer(
        finding=_finding(result, faulty),
        notes=_notes(result, faulty, len(result.layers) - len(shown)),
        model=result.model,
        total=len(result.layers),
        truncated=len(shown) < len(result.layers),
        table=tabulate(_COLUMNS, shown),
    )


def _finding(result: LoadFeaturesResult, faulty: list[LoadedLayer]) -> str:
    many = len(result.layers)
    what = "a dictionary" if many == 1 else f"{many} dictionaries"
    layout = result.layers[0].layout
    return (
        f"{quoted(result.name)} is {what} of features for {result.model} ({layout}): on {result.tokens} tokens "
        f"{_verdict(faulty, many)}."
    )


def _verdict(faulty: list[LoadedLayer], many: int) -> str:
    if many == 1:
        fits = "it fits" if not faulty or not faulty[0].faults else "it does not fit there"
        return fits if not faulty or faulty[0].faults else "another hook point fits better"
    unfit = sum(bool(one.faults) for one in faulty)
    said = [f"{unfit} do not fit there"] if unfit else []
    said += [f"{len(faulty) - unfit} fit another hook point better"] if len(faulty) > unfit else []
    return " and ".join(said) or "they fit"


def _misplaced(one: LoadedLayer) -> str:
    """The signs that a dictionary reads the wrong hook point, and the one that it fits best."""
    best = one.elsewhere[0] if one.elsewhere else None
    if not one.faults and best is not None:
        return (
            f"{one.fit.place}: {best.place} fits better (FVU {number(best.fvu or 0.0)} against "
            f"{number(one.here or 0.0)} on the same tokens): the hook point may be wrong."
        )
    where = " It fits at none of the other hook points tried."
    if best is not None and best.fvu is not None and best.fvu < min(1.0, one.fit.fvu or 0.0):
        where = f" It fits best at {best.place} (FVU {number(best.fvu)}, L0 {number(best.l0)})."
    return f"{one.fit.place}: {'; '.join(one.faults)}.{where}"


def _notes(result: LoadFeaturesResult, faulty: list[LoadedLayer], hidden: int) -> list[str]:
    notes = [_misplaced(one) for one in faulty[:_FAULTS]]
    notes += left_out(len(faulty) - _FAULTS, "misplaced dictionary", "layers")
    notes += left_out(hidden, "dictionary", "layers")
    notes.append(
        "FVU: 0 is exact, 1 is the mean of the states. Loss recovered: 1 is the model's own loss, 0 that with zeros in "
        "the states' place. Silent: share of features active at no token. First tokens are left out."
    )
    found = [one for one in result.layers if one.scale is not None]
    if found:
        notes.append(
            f"The input is scaled by {number(found[0].scale or 1.0)}, from the mean norm here: the files leave it out."
        )
    named = {one.trained_on for one in result.layers if one.trained_on}
    notes += (
        [f"Trained on {plural(len(named), 'model')}, as the files say: {', '.join(sorted(named))}."] if named else []
    )
    labelled = list(dict.fromkeys(one.labels for one in result.layers if one.labels))
    if labelled:
        notes.append(f"Labels, third-party text: {', '.join(labelled[:_FAULTS])}.")
    return notes
