"""From the component that a call names to parts of the model, and the random components of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.claims.components import ComponentPart
from nnterp_mcp.experiments.claims.random_components import STREAM
from nnterp_mcp.experiments.patching.alignment import LabelledSpans, Span, align
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.cells import GivenCell
from nnterp_mcp.request.selectors import resolve_indices, resolve_layers
from nnterp_mcp.request.sites import HEAD_SITES

WHOLE = "all"
"""The label of the span that covers prompts as a whole."""


def spans_of(pairs: Sequence[Pair], positions: Any, cells: Sequence[GivenCell]) -> list[list[Span]]:
    """The spans of each pair: those of the call, or whole prompts where no cell names positions.

    Raises:
        InvalidRequest: Tokens do not correspond.
    """
    whole: LabelledSpans = {WHOLE: (("all",), ("all",))}
    if isinstance(positions, Mapping):
        return align(pairs, {label: (span.clean, span.corrupted) for label, span in positions.items()})
    labels = [str(one) for cell in cells for one in cell.positions or ()]
    for label in labels:
        if not label.isdigit():
            raise InvalidRequest(f"there is no position {label!r}.", f'Say where it is: positions={{"{label}": …}}.')
    if positions == ("all",) and not labels:
        for pair in pairs:
            align([pair], positions)
        return align(pairs, whole)
    return align(pairs, positions)


def parts_of(model: StandardizedTransformer, cells: Sequence[GivenCell], spans: Sequence[Span]) -> list[ComponentPart]:
    """The parts that cells name.

    Args:
        model: The model.
        cells: The cells.
        spans: The spans of one pair.

    Raises:
        InvalidRequest: A layer, a head or a span does not exist, or the residual stream is named at whole prompts.
        Unsupported: The model does not have a site.
    """
    found: dict[ComponentPart, None] = {}
    for cell in cells:
        site = cell.site or ("layers_output" if cell.heads is None else "heads_output")
        if cell.heads is not None and site not in HEAD_SITES:
            raise InvalidRequest(f"there are no heads at {site}.", "Leave out heads, or name heads_output.")
        chosen = _spans(cell, spans)
        if site in STREAM and chosen is None:
            raise InvalidRequest(
                f"{site} at all positions is the whole run: with it exchanged, one run is the other.",
                "Name positions, or heads and sublayers.",
            )
        for layer in resolve_layers(cell.layers, model.num_layers, model.name):
            require_place(model, Place(site, layer))
            for unit in _units(model, cell, layer):
                found[ComponentPart(Place(site, layer), unit, chosen)] = None
    return list(found)


def _units(model: StandardizedTransformer, cell: GivenCell, layer: int) -> Sequence[int | None]:
    if cell.heads is None:
        return [None]
    count = model.anatomy.layers[layer].num_heads
    return resolve_indices(tuple(cell.heads), count, "head", f"layer {layer} of {model.name}")


def _spans(cell: GivenCell, spans: Sequence[Span]) -> tuple[int, ...] | None:
    """The spans that a cell names; None for whole prompts."""
    labels = [span.label for span in spans]
    if cell.positions is None:
        return None if labels == [WHOLE] else tuple(range(len(spans)))
    for label in map(str, cell.positions):
        if label not in labels:
            raise InvalidRequest(f"there is no position {label!r}: there are {', '.join(labels)}.")
    return tuple(labels.index(str(label)) for label in cell.positions)


def name_part(part: ComponentPart, spans: Sequence[Span]) -> str:
    """A part as answers name it: L23H4, or "mlps_output L3@4" with positions or labels behind the layer."""
    head = "" if part.unit is None else f"H{part.unit}"
    site = "" if part.place.site == "heads_output" else f"{part.place.site} "
    labels = [] if part.spans is None else [spans[at].label for at in part.spans]
    where = ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
    at = "@other tokens" if part.drawn else f"@{where}" if where and len(labels) < len(spans) else ""
    return f"{site}L{part.place.layer}{head}{at}"
