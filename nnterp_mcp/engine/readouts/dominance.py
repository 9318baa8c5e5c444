"""Tokens whose state is so long that it dominates a mean over tokens."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

_DOMINANT = 5.0
"""The ratio to the median norm from which a state dominates a mean."""


@dataclass(frozen=True)
class DominantState:
    """The longest of the states that are averaged.

    Attributes:
        state: Its index.
        layer: The index of the layer at which its norm exceeds the others' most.
        ratio: Its norm over the median norm of the averaged states there.
    """

    state: int
    layer: int
    ratio: float


def find_dominant(norms: Float[Tensor, "state layer"]) -> DominantState | None:
    """Finds the state that dominates the mean over states, if there is one.

    Args:
        norms: The norms of the states that are averaged.

    Source: Sun et al., "Massive Activations in Large Language Models" (2024).
    """
    middle = norms.median(0).values
    ratios = (norms / middle).where(middle > 0, 0)
    state, layer = divmod(int(ratios.argmax()), norms.shape[1])
    ratio = float(ratios[state, layer])
    return DominantState(state, layer, ratio) if ratio >= _DOMINANT else None
