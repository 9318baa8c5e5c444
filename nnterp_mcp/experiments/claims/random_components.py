"""Matched random components: as many parts of the same kind, of the same layers where these have enough others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.claims.components import Component, ComponentPart
from nnterp_mcp.experiments.claims.trials import Behaviour
from nnterp_mcp.experiments.features.patching import draw_matched_features
from nnterp_mcp.experiments.patching.alignment import Span
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.sites import Site

STREAM: frozenset[Site] = frozenset({"layers_input", "layers_output"})
"""Sites of the residual stream: a neighbouring layer has nearly the same state, so that only other tokens differ."""

_TRIES = 50
"""Draws for each set that is wanted: some come twice."""


@dataclass(frozen=True)
class RandomSets:
    """Random sets.

    Attributes:
        sets: The sets, all different.
        within: The layers by which a part may lie apart from the one that it stands for.
    """

    sets: list[tuple[ComponentPart, ...]]
    within: int


@dataclass(frozen=True)
class Draws:
    """Draws random sets of as many parts of the same sites, none of them a part of the claim.

    Heads are drawn from heads of the same layer, sublayers at some tokens from the same sublayer at as many other
    tokens, sublayers at all tokens from other layers. Where these are too few for different sets, from layers further
    away, by as little as suffices.

    Attributes:
        model: The model.
        parts: The parts of the claim.
        spans: The spans of a pair of prompts, the shortest one.
        lengths: The tokens of its clean and of its corrupted prompt.
    """

    model: StandardizedTransformer
    parts: Sequence[ComponentPart]
    spans: Sequence[Span]
    lengths: tuple[int, int]

    def draw(self, count: int, seed: int = 0) -> RandomSets:
        """So many different sets, or fewer where there are no more.

        Args:
            count: Sets that are wanted.
            seed: The seed of the draws.
        """
        best = RandomSets([], 0)
        for within in range(self.model.num_layers):
            found = self._within(within, count, random.Random(seed))
            if len(found) > len(best.sets):
                best = RandomSets(found, within)
            if len(found) == count:
                break
        return best

    def _within(self, within: int, count: int, dice: random.Random) -> list[tuple[ComponentPart, ...]]:
        choices = [self._choices(part, within) for part in self.parts]
        found: dict[frozenset[ComponentPart], tuple[ComponentPart, ...]] = {}
        for _ in range(count * _TRIES):
            drawn = self._draw(choices, dice)
            if drawn:
                found.setdefault(frozenset(drawn), drawn)
            if len(found) == count:
                break
        return list(found.values())

    def _choices(self, part: ComponentPart, within: int) -> list[ComponentPart]:
        """The parts that may stand for one, those at drawn tokens last, with no tokens yet."""
        site, layer = part.place.site, part.place.layer or 0
        layers = [at for at in range(self.model.num_layers) if abs(at - layer) <= within]
        alike = [
            replace(part, place=place, unit=unit)
            for at in layers
            if _has(self.model, place := Place(site, at))
            for unit in self._units(place, part)
        ]
        same_tokens = [] if site in STREAM else [one for one in alike if one not in self.parts]
        other_tokens = alike if part.unit is None and self._free(part) > 0 else []
        return [*same_tokens, *(replace(one, drawn=(0.0,)) for one in other_tokens)]

    def _units(self, place: Place, part: ComponentPart) -> Sequence[int | None]:
        return [None] if part.unit is None else range(self.model.anatomy.layers[place.layer or 0].num_heads)

    def _named(self, part: ComponentPart) -> int:
        return len(part.tokens(self.spans, self.lengths))

    def _free(self, part: ComponentPart) -> int:
        return min(self.lengths) - self._named(part)

    def _draw(self, choices: Sequence[Sequence[ComponentPart]], dice: random.Random) -> tuple[ComponentPart, ...]:
        drawn: list[ComponentPart] = []
        for part, listed in zip(self.parts, choices, strict=True):
            left = [one for one in listed if one not in drawn]
            if not left:
                return ()
            one = dice.choice(left)
            if one.drawn:
                free = self._free(part)
                at = sorted(dice.sample(range(free), min(free, self._named(part))))
                one = replace(one, drawn=tuple((place + 0.5) / free for place in at))
            drawn.append(one)
        return tuple(drawn)


def draw_subspaces(width: int, dimensions: int, count: int, seed: int = 0) -> list[Float[Tensor, "dimension width"]]:
    """Orthonormal bases of random subspaces, uniform over all of their dimension; of one dimension, random directions.

    Args:
        width: The width of the states.
        dimensions: Those of each subspace.
        count: Subspaces.
        seed: The seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(width, dimensions, generator=generator) for _ in range(count))
    return [torch.linalg.qr(one).Q.T.contiguous() for one in drawn]


def draw_features(
    behaviour: Behaviour, component: Component, part: ComponentPart, features: Sequence[int], count: int, seed: int = 0
) -> list[list[int]] | None:
    """Random sets of features that are about as often and as strongly active in the runs of a behaviour.

    Args:
        behaviour: The runs.
        component: Features of the dictionary.
        part: Their hook point, with its tokens.
        features: The features of the claim.
        count: Sets that are wanted.
        seed: The seed of the draws.

    Returns:
        Different sets; None where no feature of the claim is active.
    """
    active = torch.cat([one.exchanged.cpu() for one in behaviour.readings(component, part)])
    counts, sums = (active > 0).sum(0), active.sum(0)
    if not bool(counts[list(features)].any()):
        return None
    return draw_matched_features(counts, sums, features, count, seed, fewest=count)


def _has(model: StandardizedTransformer, place: Place) -> bool:
    try:
        require_place(model, place)
    except Unsupported:
        return False
    return True
