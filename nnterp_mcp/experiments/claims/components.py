"""The subject of a claim: states at hook points, and the exchange of a run's own for those of another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.hook_points import Place
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
    """

    place: Place
    unit: int | None = None
    spans: tuple[int, ...] | None = None
    drawn: Fractions = ()

    def tokens(self, spans: Sequence[Span], lengths: tuple[int, int]) -> list[tuple[int, int]]:
        """The positions in the clean prompt of a pair, each with that in the corrupted one.

        Args:
            spans: The spans of the pair.
            lengths: The tokens of both prompts.
        """
        chosen = spans if self.spans is None else [spans[at] for at in self.spans]
        named = {both for span in chosen for both in zip(span.clean, span.corrupted, strict=True)}
        if not self.drawn:
            return sorted(named)
        clean, corrupted = lengths
        count = min(lengths)
        others = [(clean - at, corrupted - at) for at in range(count, 0, -1)]
        free = [both for both in others if both not in named]
        return sorted({free[int(one * len(free))] for one in self.drawn}) if free else []


class StateExchange(Protocol):
    """Moves a run's states towards those of another run."""

    def __call__(
        self, own: Float[Tensor, "token *head width"], other: Float[Tensor, "token *head width"], strength: float
    ) -> Float[Tensor, "token *head width"]:
        """The states that a run continues with: its own at a strength of 0, exchanged at 1."""
        ...


@dataclass(frozen=True)
class Whole:
    """Exchanges whole states."""

    def __call__(
        self, own: Float[Tensor, "token *head width"], other: Float[Tensor, "token *head width"], strength: float
    ) -> Float[Tensor, "token *head width"]:
        """The states between both runs; exactly the other's at a strength of 1."""
        return other.to(own) if strength == 1 else own + strength * (other.to(own) - own)


@dataclass(frozen=True, eq=False)
class Along:
    """Exchanges what states have along a subspace, and leaves the rest: own + (other - own) R^T R.

    Attributes:
        rows: An orthonormal basis of the subspace.

    Source: Geiger et al., "Finding Alignments Between Interpretable Causal Variables and Distributed Neural
    Representations" (2024).
    """

    rows: Float[Tensor, "dimension width"]

    def __call__(
        self, own: Float[Tensor, "token *head width"], other: Float[Tensor, "token *head width"], strength: float
    ) -> Float[Tensor, "token *head width"]:
        """The states whose coordinates in the subspace are on the way to the other's."""
        rows = self.rows.to(own.device)
        moved = (other.float() - own.float()) @ rows.T @ rows
        return (own.float() + strength * moved).to(own)


@dataclass(frozen=True, eq=False)
class Component:
    """States at some hook points that are exchanged together.

    Attributes:
        parts: The hook points.
        exchange: How states are exchanged.
    """

    parts: tuple[ComponentPart, ...]
    exchange: StateExchange = Whole()
