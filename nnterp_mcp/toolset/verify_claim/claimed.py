"""From the component that a call names to parts of the model, and the random components of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from nnterp_mcp.engine.edits import require_width
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.engine.planning.features import FeatureBasis
from nnterp_mcp.engine.planning.vectors import resolve_subspace
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.claims.components import Along, AsFarAlong, Component, ComponentPart, OfFeatures
from nnterp_mcp.experiments.claims.random_components import STREAM, Draws, draw_features, draw_subspaces
from nnterp_mcp.experiments.claims.trials import Behaviour
from nnterp_mcp.experiments.patching.alignment import LabelledSpans, Span, align
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.formatting import plural
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.cells import GivenCell
from nnterp_mcp.request.operations import label_of
from nnterp_mcp.request.selectors import resolve_indices, resolve_layers
from nnterp_mcp.request.sites import HEAD_SITES
from nnterp_mcp.toolset.verify_claim.params import ClaimedFeatures, ClaimedSubspace

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

Claim = Sequence[GivenCell] | ClaimedSubspace | ClaimedFeatures

_SEED = 1
"""The seed of directions of equal norm: others than those that a claim's direction is exchanged for."""

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
        directions: Random directions along which states move as far as they do for the claim.
    """

    component: Component
    randoms: list[Component]
    names: list[str]
    random_names: list[str]
    kind: str
    directions: list[Component] = field(default_factory=list[Component])

    @property
    def components(self) -> list[Component]:
        """The claim's component, random ones of its kind, and random directions."""
        return [self.component, *self.randoms, *self.directions]


def find_claimed(
    bench: Bench,
    claim: Sequence[GivenCell] | ClaimedSubspace,
    spans: Sequence[Span],
    lengths: tuple[int, int],
    count: int,
    *,
    alone: bool = False,
) -> Claimed:
    """The component that a call names, and random ones.

    Args:
        bench: The model and its vectors.
        claim: The claim, if not of features.
        spans: The spans of the shortest pair.
        lengths: The tokens of its clean and of its corrupted prompt.
        count: Random components.
        alone: Prompts have no corrupted ones.
    """
    if isinstance(claim, ClaimedSubspace):
        return _subspace(bench, claim, spans, count, alone)
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


def find_features(
    bench: Bench, claim: ClaimedFeatures, basis: FeatureBasis, spans: Sequence[Span], behaviour: Behaviour, count: int
) -> Claimed:
    """The features that a call names, features that are about as often and as strongly active in its runs, and
    random directions along which states move as far.

    Args:
        bench: The model.
        claim: The claim.
        basis: The dictionary.
        spans: The spans of a pair.
        behaviour: The runs.
        count: Random sets, and random directions.

    Raises:
        InvalidRequest: There is no such feature, or none is active in these runs.
    """
    features = resolve_indices(claim.features, basis.latents, "feature", claim.dictionary)
    chosen = _labels(claim.positions, spans)
    part = ComponentPart(basis.writes, None, chosen, after_first=True)
    component = Component((part,), OfFeatures(basis, features), basis)
    sets = draw_features(behaviour, component, part, features, count)
    if sets is None:
        raise InvalidRequest(
            f"{claim.dictionary} has none of these features active at the claimed tokens of these runs.",
            "Find active ones with features on these prompts.",
        )
    at = name_part(part, spans)
    return Claimed(
        component,
        [Component((part,), OfFeatures(basis, one), basis) for one in sets],
        [f"{plural(len(features), 'feature')} {', '.join(map(str, features[:6]))} of {claim.dictionary} at {at}"],
        [f"features {', '.join(map(str, one))}" for one in sets],
        "matched feature" if len(features) == 1 else "set of matched features",
        _as_far(component, part, bench.model.hidden_size, count),
    )


def _as_far(component: Component, part: ComponentPart, width: int, count: int) -> list[Component]:
    """Moves as far along random directions."""
    return [
        Component((part,), AsFarAlong(component.exchange, row[0]), component.basis)
        for row in draw_subspaces(width, 1, count, _SEED)
    ]


def _subspace(bench: Bench, claim: ClaimedSubspace, spans: Sequence[Span], count: int, alone: bool) -> Claimed:
    (part,) = parts_of(bench.model, [claim.cell], spans, whole_stream=True)
    part = replace(part, after_first=alone and part.spans is None)
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
    component = Component((part,), Along(basis))
    return Claimed(
        component,
        [Component((part,), Along(one)) for one in randoms],
        [f"{name} {name_part(part, spans)}"],
        [f"{kind.removesuffix(' there')} {at}" for at in range(count)],
        kind,
        _as_far(component, part, bench.model.hidden_size, count),
    )


def claimed_labels(claim: Claim) -> list[str]:
    """The labels or positions that a claim names."""
    named = claim if isinstance(claim, Sequence) else [claim]
    return [str(one) for part in named for one in part.positions or ()]


def spans_of(pairs: Sequence[Pair], positions: Any, labels: Sequence[str]) -> list[list[Span]]:
    """The spans of each pair: those of the call, or whole prompts where no cell names positions.

    Raises:
        InvalidRequest: Tokens do not correspond.
    """
    whole: LabelledSpans = {WHOLE: (("all",), ("all",))}
    if isinstance(positions, Mapping):
        return align(pairs, {label: (span.clean, span.corrupted) for label, span in positions.items()})
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
        chosen = _labels(cell.positions, spans)
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


def _labels(named: Sequence[int | str] | None, spans: Sequence[Span]) -> tuple[int, ...] | None:
    """The spans of these labels; None for whole prompts."""
    labels = [span.label for span in spans]
    if named is None:
        return None if labels == [WHOLE] else tuple(range(len(spans)))
    for label in map(str, named):
        if label not in labels:
            raise InvalidRequest(f"there is no position {label!r}: there are {', '.join(labels)}.")
    return tuple(labels.index(str(label)) for label in named)


def name_part(part: ComponentPart, spans: Sequence[Span]) -> str:
    """A part as answers name it: L23H4, or "mlps_output L3@4" with positions or labels behind the layer."""
    head = "" if part.unit is None else f"H{part.unit}"
    site = "" if part.place.site == "heads_output" else f"{part.place.site} "
    labels = [] if part.spans is None else [spans[at].label for at in part.spans]
    where = ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
    at = "@other tokens" if part.drawn else f"@{where}" if where and len(labels) < len(spans) else ""
    return f"{site}L{part.place.layer}{head}{at}"
