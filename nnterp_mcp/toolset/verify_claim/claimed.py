"""From the component that a call names to parts of the model, and the random components of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nnterp_mcp.engine.edits import require_width
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.engine.planning.vectors import resolve_subspace
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.claims.components import Along, Component, ComponentPart
from nnterp_mcp.experiments.claims.random_components import STREAM, Draws, draw_subspaces
from nnterp_mcp.experiments.patching.alignment import LabelledSpans, Span, align
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.formatting import plural
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.cells import GivenCell
from nnterp_mcp.request.operations import label_of
from nnterp_mcp.request.selectors import resolve_indices, resolve_layers
from nnterp_mcp.request.sites import HEAD_SITES
from nnterp_mcp.toolset.verify_claim.params import ClaimedSubspace

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

Claim = Sequence[GivenCell] | ClaimedSubspace

WHOLE = "all"
"""The label of the span that covers prompts as a whole."""


@dataclass(frozen=True)
class Claimed:
    """The component of a claim, and random ones of its kind.

    Attributes:
        component: The claim's.
        randoms: The random ones.
        names: The parts of the claim, as answers name them.
        random_names: The random ones.
        kind: The random ones, in words.
    """

    component: Component
    randoms: list[Component]
    names: list[str]
    random_names: list[str]
    kind: str


def find_claimed(bench: Bench, claim: Claim, spans: Sequence[Span], lengths: tuple[int, int], count: int) -> Claimed:
    """The component that a call names, and random ones.

    Args:
        bench: The model and its vectors.
        claim: The claim.
        spans: The spans of the shortest pair.
        lengths: The tokens of its clean and of its corrupted prompt.
        count: Random components.
    """
    if isinstance(claim, ClaimedSubspace):
        return _subspace(bench, claim, spans, count)
    parts = parts_of(bench.model, claim, spans)
    sets = Draws(bench.model, parts, spans, lengths).draw(count)
    apart = "of the same layers" if sets.within == 0 else f"of layers up to {sets.within} away"
    return Claimed(
        Component(tuple(parts)),
        [Component(one) for one in sets.sets],
        [name_part(part, spans) for part in parts],
        [", ".join(name_part(part, spans) for part in one) for one in sets.sets],
        f"component {apart}",
    )


def _subspace(bench: Bench, claim: ClaimedSubspace, spans: Sequence[Span], count: int) -> Claimed:
    (part,) = parts_of(bench.model, [claim.cell], spans, whole_stream=True)
    if claim.vector is None:
        rows = torch.tensor(claim.rows)
    else:
        rows = resolve_subspace(bench.model, claim.vector, part.place, bench.find_vector).float()
    for row in rows:
        require_width(row, bench.model.hidden_size, "a row of the subspace", part.place)
    if int(torch.linalg.matrix_rank(rows)) < len(rows):
        raise InvalidRequest("the rows of the subspace are not independent.", "Leave out those that others span.")
    basis = torch.linalg.qr(rows.T).Q.T.contiguous()
    name = f"{label_of(claim.vector)} at" if claim.vector is not None else f"{plural(len(rows), 'dimension')} of"
    randoms = draw_subspaces(bench.model.hidden_size, len(rows), count)
    kind = "direction there" if len(rows) == 1 else "subspace of as many dimensions there"
    return Claimed(
        Component((part,), Along(basis)),
        [Component((part,), Along(one)) for one in randoms],
        [f"{name} {name_part(part, spans)}"],
        [f"{kind.removesuffix(' there')} {at}" for at in range(count)],
        kind,
    )


def cells_of(claim: Claim) -> Sequence[GivenCell]:
    """The cells that name the positions of a claim."""
    return [claim.cell] if isinstance(claim, ClaimedSubspace) else claim


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


def parts_of(
    model: StandardizedTransformer, cells: Sequence[GivenCell], spans: Sequence[Span], *, whole_stream: bool = False
) -> list[ComponentPart]:
    """The parts that cells name.

    Args:
        model: The model.
        cells: The cells.
        spans: The spans of one pair.
        whole_stream: Only a part of the states is exchanged, so that the residual stream may be named at whole prompts.

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
        if site in STREAM and chosen is None and not whole_stream:
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
