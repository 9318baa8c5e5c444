"""An attribution as a picture: its parts by layer, its strongest parts as bars, and the sums of the layers."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.display.figure import (
    Arrays,
    Bar,
    Bars,
    Colours,
    Curve,
    Curves,
    Figure,
    Heatmap,
    visible,
)
from nnterp_mcp.display.layers import target_names
from nnterp_mcp.formatting import elided, number, plural, quoted
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.attribute.answer import part_name
from nnterp_mcp.toolset.attribute.result import AttributedPart, AttributeResult, LayerSum

_PARTS = 20
"""Parts that are drawn as bars."""

_TOKENS = 48
"""Tokens of one prompt up to which all are drawn, in their order."""

_COLUMNS = 100
"""Columns of a grid, the last positions of a long prompt."""

_SITES = 4
"""Sites whose cells are drawn as grids."""

_NOTHING = 1e-5
"""The share of the whole below which nothing is left: rounding."""

_METHODS = {
    "direct": "Direct logit attribution",
    "gradient": "Gradient × input",
    "integrated": "Integrated gradients",
    "patching": "Attribution patching",
}
_SUMS = {"attention": "attention", "mlp": "MLP", "rest": "rest"}
_NAMES = {"mlp": "MLP"}


def figure(result: AttributeResult, arrays: Arrays) -> Figure:
    """Grids of layers where parts lie in them; then the strongest parts, or every token in its place."""
    in_order = result.by == "token" and len(result.prompts) == 1 and len(result.parts) <= _TOKENS
    parts = sorted(result.parts, key=lambda part: -abs(part.value.mean))[:_PARTS]
    if in_order:
        parts = sorted(result.parts, key=lambda part: part.index or 0)
    several = len(result.prompts) > 1
    noun = "tokens" if result.by == "token" else "parts"
    prompt = quoted(elided(result.prompts[0], 200))
    against = f" → {quoted(elided(result.against, 160))}" if result.against else ""
    return Figure(
        title=f"{_METHODS[result.method]} · {result.model}",
        subtitle=f"mean of {len(result.prompts)} prompts, the first: {prompt}{against}"
        if several
        else prompt + against,
        panels=[*_grids(result), _bars(parts, result), *([_sums(result)] if result.layers else [])],
        columns=3,
        notes=[
            *_adding_up(parts, result),
            *_outside(result),
            *([f"Bars: {len(parts)} of {result.total} {noun}, the strongest."] if len(parts) < result.total else []),
            *(["Lines: 95 % intervals over prompts."] if any(part.value.low is not None for part in parts) else []),
            *in_force(result.in_force),
        ],
    )


def _unit(result: AttributeResult) -> str:
    return "nats" if result.metric == "log_probability" else "logits"


def _metric(result: AttributeResult) -> str:
    names = target_names(result.categories, len(result.prompts))
    if result.metric == "logit_difference":
        return f"logit difference {' − '.join(names)}"
    return f"{'log-probability' if result.metric == 'log_probability' else 'logit'} of {names[0]}"


def _adding_up(parts: Sequence[AttributedPart], result: AttributeResult) -> list[str]:
    """The attributed number, what the drawn parts sum to, and what is left."""
    whole = f"{_metric(result)} = {number(result.whole.mean)} {_unit(result)}"
    if result.method == "patching":
        base = "" if result.base is None else f"; {result.corruption or 'corrupted'}: {number(result.base.mean)}"
        return [f"{whole}{base}."]
    of_all = result.by == "token"
    among = result.parts if of_all else parts
    added = sum(part.value.mean for part in among) / (len(result.prompts) if of_all else 1)
    start = 0.0 if result.base is None else result.base.mean
    base = f", {number(start)} with every embedding the mean one" if result.base is not None else ""
    drawn = plural(len(among), "token") if of_all else f"{plural(len(among), 'bar')} drawn"
    mean = " in the mean of the prompts" if of_all and len(result.prompts) > 1 else ""
    left = result.whole.mean - start - added
    rest = number(left) if abs(left) > _NOTHING * max(1.0, abs(result.whole.mean)) else "nothing"
    return [f"{whole}{base}. The {drawn} sum to {number(added)}{mean}; {rest} is left."]


def _outside(result: AttributeResult) -> list[str]:
    """The note on parts that are in no layer, next to a grid of layers."""
    parts = [part for part in result.parts if part.layer is None and part.kind != "token"]
    told = ", ".join(f"{part.kind} {number(part.value.mean)}" for part in parts)
    return [f"Outside the layers: {told}."] if told else []


def _grids(result: AttributeResult) -> list[Heatmap]:
    """Layers upwards; heads across, with what a layer adds besides; or positions, a grid for each site."""
    inside = [part for part in result.parts if part.layer is not None and part.source is None]
    if result.method == "patching" and result.by not in ("head", "feature"):
        sites = list(dict.fromkeys(part.kind for part in inside))[:_SITES]
        return [_grid(site, "token", [part for part in inside if part.kind == site], result) for site in sites]
    if inside and result.by in ("head", "sublayer"):
        return [_grid(f"by layer and {result.by}", result.by, inside, result)]
    return []


def _grid(title: str, across: str, parts: Sequence[AttributedPart], result: AttributeResult) -> Heatmap:
    layers = sorted({part.layer for part in parts if part.layer is not None}, reverse=True)
    found = {(part.layer, part.kind if part.index is None else part.index): part for part in parts}
    columns = {key: _column(part) for (_, key), part in sorted(found.items(), key=lambda item: _order(item[1]))}
    columns = dict(list(columns.items())[-_COLUMNS:])
    return Heatmap(
        title=title if len({part.index for part in parts}) <= _COLUMNS else f"{title}, the last {_COLUMNS} columns",
        across=across,
        down="layer",
        columns=list(columns.values()),
        rows=[str(layer) for layer in layers],
        values=[[_value(found.get((layer, column))) for column in columns] for layer in layers],
        colours=Colours.around(_along(result), [part.value.mean for part in parts]),
    )


def _value(part: AttributedPart | None) -> float | None:
    return None if part is None else part.value.mean


def _order(part: AttributedPart) -> tuple[bool, int, str]:
    return part.index is None, part.index or 0, part.kind


def _column(part: AttributedPart) -> str:
    if part.index is None:
        return _NAMES.get(part.kind, part.kind)
    return str(part.index) if part.token is None else f"{visible(elided(part.token, 12))} {part.index}"


def _along(result: AttributeResult) -> str:
    verb = "estimated change of" if result.method == "patching" else "adds to"
    return f"{verb} the {result.metric.replace('_', ' ')} ({_unit(result)})"


def _bars(parts: Sequence[AttributedPart], result: AttributeResult) -> Bars:
    patched = result.method == "patching"
    bars = [Bar(_name(part, result), part.value.mean, part.value.low, part.value.high, part.patched) for part in parts]
    title = "every token" if len(parts) == result.total else f"the strongest by {result.by.replace('_', ' ')}"
    title = title if result.by == "token" or len(parts) < result.total else f"by {result.by.replace('_', ' ')}"
    return Bars(title, _along(result), bars, mark="really patched" if patched else None, signed=True)


def _name(part: AttributedPart, result: AttributeResult) -> str:
    if part.kind == "token":
        prompt = f"{part.prompt}: " if len(result.prompts) > 1 else ""
        return f"{prompt}{visible(elided(part.token or '', 20))} {part.index}"
    if part.source is not None:
        return f"{part_name(part)} from {visible(elided(part.token or '', 20))} {part.source}"
    if result.method == "patching":
        site = f"{part.kind} " if result.by == "sublayer" else ""
        return f"{site}{part_name(part, cell=True)}"
    return part_name(part)


def _sums(result: AttributeResult) -> Curves:
    curves = [curve for field, name in _SUMS.items() for curve in _sum(result.layers, field, name)]
    return Curves("sum of each layer", "layer", _unit(result), curves, span=(0.0, 0.0))


def _sum(layers: Sequence[LayerSum], field: str, name: str) -> list[Curve]:
    found = [(one.layer, getattr(one, field)) for one in layers if getattr(one, field) is not None]
    return [Curve(name, [layer for layer, _ in found], [value for _, value in found])] if found else []
