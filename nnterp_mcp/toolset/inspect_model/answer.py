"""From a model's modules and code to an answer."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.formatting import elided, magnitude, plural, ranges
from nnterp_mcp.table import Column, tabulate
from nnterp_mcp.toolset.inspect_model.result import (
    ForwardCode,
    InspectModelAnswer,
    InspectModelResult,
    LayerGroup,
    ModuleLine,
)

_LINES = 26
"""Lines of a tree that an answer shows."""

_GROUPS = 5
"""Kinds of layers that an answer shows."""

_CODE = 1800
"""Characters of code that an answer shows."""


def digest(result: InspectModelResult) -> InspectModelAnswer:
    """The code if it was asked for, else the tree, with the layers where it is the whole model's."""
    if result.source is not None:
        return _with_code(result, result.source)
    shown = _upper(result.tree)
    hidden = len(result.tree) - len(shown)
    return InspectModelAnswer(
        finding=_finding(result),
        notes=[
            *_notes(result),
            *([f"{plural(hidden, 'line')} further down not shown; give a path."] if hidden else []),
        ],
        model=result.model,
        total=len(result.tree),
        truncated=hidden > 0 or len(result.layers) > _GROUPS,
        tree=tabulate(_TREE, shown) if shown else None,
        layers=tabulate(_LAYERS, result.layers[:_GROUPS]) if result.layers else None,
    )


def _finding(result: InspectModelResult) -> str:
    what = f"a {result.kind} ({result.home.rpartition('.')[2]}) of {magnitude(result.parameters)} parameters"
    where = f"{result.dtype} on {result.device}"
    if not result.path:
        return f"{result.model}: {what}, {where}, {result.attention} attention."
    named = f"{result.standard} is {result.path}, " if result.standard else f"{result.path} is "
    tensors = ", ".join(f"{name} {shape}" for name, shape in result.tensors.items())
    return " ".join(
        filter(None, [f"{named}{what}, {where}.", tensors and f"It holds {tensors}.", result.hidden_states])
    )


def _notes(result: InspectModelResult) -> list[str]:
    notes = [f"Refused: {elided(reason, 200)}" for reason in dict.fromkeys(result.refused.values())]
    if result.silent:
        notes.append(f"{plural(result.silent, 'module')} without parameters not listed.")
    if len(result.layers) > _GROUPS:
        notes.append(f"{plural(len(result.layers) - _GROUPS, 'more kind')} of layers not shown.")
    return notes


def _upper(tree: Sequence[ModuleLine]) -> list[ModuleLine]:
    """The tree down to the level that fits; where not even the first one does, as much of that as fits."""
    shown: list[ModuleLine] = []
    for depth in sorted({line.depth for line in tree}):
        level = [line for line in tree if line.depth <= depth]
        if len(level) > _LINES:
            return shown or level[:_LINES]
        shown = level
    return shown


_TREE: list[Column[ModuleLine]] = [
    Column("standard name", lambda line: line.standard),
    Column("in transformers", lambda line: line.path),
    Column("class", lambda line: line.kind),
    Column("parameters", lambda line: _weights(line)),
]


def _weights(line: ModuleLine) -> str:
    own = ", ".join(f"{name} {shape}" for name, shape in line.tensors.items())
    if not line.more:
        return own
    return f"{magnitude(line.parameters)}, of these {own}" if own else magnitude(line.parameters)


_LAYERS: list[Column[LayerGroup]] = [
    Column("layers", lambda group: ranges(group.layers)),
    Column("kind", lambda group: group.kind),
    Column("heads", lambda group: group.heads),
    Column("sites", lambda group: _sites(group)),
    Column("attention probabilities multiply values in", lambda group: group.product),
]


def _sites(group: LayerGroup) -> str:
    if not group.lacking:
        return "all"
    return f"all but {', '.join(group.lacking)}" if len(group.lacking) < len(group.sites) else ", ".join(group.sites)


def _with_code(result: InspectModelResult, source: ForwardCode) -> InspectModelAnswer:
    begin = source.start - source.first
    shown = _fitting(source.lines[begin:])
    first, last = source.start, source.start + shown - 1
    end = source.first + len(source.lines) - 1
    notes: list[str] = []
    if last < end:
        notes.append(f"Lines {last + 1} to {end} not shown; ask with start={last + 1}.")
    if first > source.first:
        notes.append(f"Lines {source.first} to {first - 1} come before.")
    return InspectModelAnswer(
        finding=f"{source.function} ({source.file}), lines {first} to {last} of {source.first} to {end}{_mark(source)}",
        notes=notes,
        model=result.model,
        total=len(source.lines),
        truncated=shown < len(source.lines),
        source="\n".join(
            f"{first + place}{'>' if first + place == source.product else ' '}{line}"
            for place, line in enumerate(source.lines[begin : begin + shown])
        ),
    )


def _mark(source: ForwardCode) -> str:
    return "." if source.product is None else f"; in line {source.product} attention probabilities multiply values."


def _fitting(lines: Sequence[str]) -> int:
    """The number of lines that fit, at least one."""
    room, count = _CODE, 0
    for line in lines:
        room -= len(line) + 5
        if room < 0 and count:
            break
        count += 1
    return count
