"""An attribution as a picture: bars of its strongest parts, and the sums of the layers."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.display.figure import Arrays, Bar, Bars, Curve, Curves, Figure, Panel, some_of, visible
from nnterp_mcp.formatting import elided, number, plural, quoted
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.attribute.answer import attributed, part_name
from nnterp_mcp.toolset.attribute.result import AttributedPart, AttributeResult, LayerSum

_PARTS = 20
"""Parts that are drawn."""

_TOKENS = 48
"""Tokens of one prompt up to which all are drawn, in their order."""

_METHODS = {
    "direct": "Direct logit attribution",
    "gradient": "Gradient × input",
    "integrated": "Integrated gradients",
    "patching": "Attribution patching",
}
_SUMS = {"attention": "attention", "mlp": "MLP", "rest": "rest"}


def figure(result: AttributeResult, arrays: Arrays) -> Figure:
    """The strongest parts, or every token in its place; then what each layer adds in all."""
    in_order = result.by == "token" and len(result.prompts) == 1 and len(result.parts) <= _TOKENS
    parts = sorted(result.parts, key=lambda part: -abs(part.value.mean))[:_PARTS]
    if in_order:
        parts = sorted(result.parts, key=lambda part: part.index or 0)
    several = len(result.prompts) > 1
    whole = f"{attributed(result)} = {number(result.whole.mean)}"
    prompt = quoted(elided(result.prompts[0], 200))
    panels: list[Panel] = [_bars(parts, result)]
    if result.layers:
        panels.append(_sums(result.layers))
    return Figure(
        title=f"{_METHODS[result.method]} · {result.model}",
        subtitle=f"{plural(len(result.prompts), 'prompt')}, the first: {prompt}" if several else prompt,
        panels=panels,
        notes=[
            f"Attributed: {whole}.",
            *some_of(result.total, len(parts), "parts"),
            *(["Lines: 95 % intervals over prompts."] if any(part.value.low is not None for part in parts) else []),
            *in_force(result.in_force),
        ],
    )


def _bars(parts: Sequence[AttributedPart], result: AttributeResult) -> Bars:
    patched = result.method == "patching"
    bars = [Bar(_name(part, result), part.value.mean, part.value.low, part.value.high, part.patched) for part in parts]
    along = f"{'estimated change of' if patched else 'adds to'} the {result.metric.replace('_', ' ')}"
    return Bars(f"by {result.by}", along, bars, mark="really patched" if patched else None)


def _name(part: AttributedPart, result: AttributeResult) -> str:
    if part.kind == "token":
        prompt = f"{part.prompt}: " if len(result.prompts) > 1 else ""
        return f"{prompt}{visible(elided(part.token or '', 20))} {part.index}"
    if result.method == "patching":
        site = f"{part.kind} " if result.by == "sublayer" else ""
        return f"{site}{part_name(part, cell=True)}"
    return part_name(part)


def _sums(layers: Sequence[LayerSum]) -> Curves:
    curves: list[Curve] = []
    for field, name in _SUMS.items():
        found = [(one.layer, getattr(one, field)) for one in layers if getattr(one, field) is not None]
        if found:
            curves.append(Curve(name, [layer for layer, _ in found], [value for _, value in found]))
    return Curves("sum of each layer", "layer", "adds", curves, span=(0.0, 0.0))
