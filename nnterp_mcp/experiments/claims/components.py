"""The subject of a claim: states at hook points, and the exchange of a run's own for those of another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.planning.features import FeatureBasis
from nnterp_mcp.experiments.patching.alignment import Span

Fractions = tuple[float, ...]
"""Tokens drawn at random from those outside some spans: numbers from 0 to 1, the place of each among these."""


@dataclass(frozen=True)
class ComponentPart:
    """The states at one hook point.

    Attributes:
        place: The hook point.
        unit: The head; None for all, or where there are none.
        spans: The spans at whose tokens they are exchanged; all of them by default.
        drawn: Where set, tokens drawn outside `spans` in place of theirs.
        after_first: The first token is left out, which has a state like no other in many models.
    """

    place: Place
    unit: int | None = None
    spans: tuple[int, ...] | None = None
    drawn: Fractions = ()
    after_first: bool = False

    def tokens(self, spans: Sequence[Span], lengths: tuple[int, int]) -> list[tuple[int, int]]:
        """The positions in the clean prompt of a pair, each with that in the corrupted one.

        Args:
            spans: The spans of the pair.
            lengths: The tokens of both prompts.
        """
        chosen = spans if self.spans is None else [spans[at] for at in self.spans]
        named = {both for span in chosen for both in zip(span.clean, span.corrupted, strict=True)}
        if self.after_first:
            named = {both for both in named if all(both)}
        if not self.drawn:
            return sorted(named)
        clean, corrupted = lengths
        count = min(lengths)
        others = [(clean - at, corrupted - at) for at in range(count, 0, -1)]
        free = [both for both in others if both not in named]
        return sorted({free[int(one * len(free))] for one in self.drawn}) if free else []


@dataclass(frozen=True)
class RunStates:
    """States of one run at some tokens of a hook point.

    Attributes:
        states: The states.
        reads: The states from which features are encoded; none without a dictionary.
        features: The activations of all features there; None without a dictionary.
    """

    states: Float[Tensor, "token *head width"]
    reads: Sequence[Float[Tensor, "token width"]] = ()
    features: Float[Tensor, "token latent"] | None = None

    @property
    def exchanged(self) -> Tensor:
        """The activations of features that another run may continue with, or else the states."""
        return self.states if self.features is None else self.features


class StateExchange(Protocol):
    """Moves a run's states towards those of another run."""

    def __call__(self, own: RunStates, other: Tensor, strength: float) -> Float[Tensor, "token *head width"]:
        """The states that a run continues with: its own at a strength of 0, exchanged at 1.

        Args:
            own: The run's states.
            other: What takes their place, as `RunStates.exchanged` has it: of another run, a mean, or zeros.
            strength: The part of the way.
        """
        ...


@dataclass(frozen=True)
class Whole:
    """Exchanges whole states."""

    def __call__(self, own: RunStates, other: Tensor, strength: float) -> Float[Tensor, "token *head width"]:
        """The states between both runs; exactly the other's at a strength of 1."""
        states = own.states
        return other.to(states) if strength == 1 else states + strength * (other.to(states) - states)


@dataclass(frozen=True, eq=False)
class Along:
    """Exchanges what states have along a subspace, and leaves the rest: own + (other - own) R^T R.

    Attributes:
        rows: An orthonormal basis of the subspace.

    Source: Geiger et al., "Finding Alignments Between Interpretable Causal Variables and Distributed Neural
    Representations" (2024).
    """

    rows: Float[Tensor, "dimension width"]

    def __call__(self, own: RunStates, other: Tensor, strength: float) -> Float[Tensor, "token *head width"]:
        """The states whose coordinates in the subspace are on the way to the other's."""
        states = own.states
        rows = self.rows.to(states.device)
        moved = (other.float() - states.float()) @ rows.T @ rows
        return (states.float() + strength * moved).to(states)


@dataclass(frozen=True, eq=False)
class OfFeatures:
    """Exchanges the activations of some features of a dictionary: own + decode(other) - decode(own), of these alone.

    Attributes:
        basis: The dictionary.
        features: The features.
    """

    basis: FeatureBasis
    features: Sequence[int]

    def __call__(self, own: RunStates, other: Tensor, strength: float) -> Float[Tensor, "token *head width"]:
        """The states that the dictionary's change moves; exactly the run's own where no activation changes."""
        assert own.features is not None
        chosen = torch.tensor(self.features, device=own.features.device)
        change = strength * (other[:, chosen].to(own.features) - own.features[:, chosen])
        states = own.states.float().flatten(1)
        moved = states + self.basis.write(change, chosen, own.reads)
        return torch.where((change != 0).any(-1, keepdim=True), moved, states).view_as(own.states).to(own.states)


@dataclass(frozen=True, eq=False)
class AsFarAlong:
    """Moves states along a direction, at each token as far as another exchange would: its control of equal norm.

    Attributes:
        exchange: The other exchange.
        direction: The direction, of norm 1.
    """

    exchange: StateExchange
    direction: Float[Tensor, " width"]

    def __call__(self, own: RunStates, other: Tensor, strength: float) -> Float[Tensor, "token *head width"]:
        """The moved states."""
        states = own.states.float().flatten(1)
        far = (self.exchange(own, other, strength).float().flatten(1) - states).norm(dim=-1, keepdim=True)
        return (states + far * self.direction.to(states)).view_as(own.states).to(own.states)


@dataclass(frozen=True, eq=False)
class Component:
    """States at some hook points that are exchanged together.

    Attributes:
        parts: The hook points.
        exchange: How states are exchanged.
        basis: The dictionary whose features are exchanged; None for states.
    """

    parts: tuple[ComponentPart, ...]
    exchange: StateExchange = Whole()
    basis: FeatureBasis | None = None

    @property
    def places(self) -> list[Place]:
        """The hook points whose states the exchange takes."""
        read = [] if self.basis is None else self.basis.reads
        return [*(part.place for part in self.parts), *read]
