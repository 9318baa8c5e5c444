"""The part of a forward pass that rows of one prompt can share exactly, found by trying it on the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from nnterp_mcp.engine.batching import run_halving
from nnterp_mcp.model.loading.trials import findings
from nnterp_mcp.model.loading.verdicts import TOLERANCES
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.standardized import StandardizedTransformer

Row = TypeVar("Row")


@dataclass(frozen=True)
class Sharing:
    """The computation that rows share with the unedited prompt.

    Attributes:
        prefix: Keys and values of the tokens before the first edited position.
        layers: The layers below the first edited hook point.
    """

    prefix: bool
    layers: bool


NO_SHARING = Sharing(prefix=False, layers=False)
_LADDER = (Sharing(True, True), Sharing(True, False), Sharing(False, True))
"""The order of trials, the cheapest first; sharing nothing is right for every model."""

SHARED = "sharing"
"""The trials of what rows can share."""


def known_sharing(module: nn.Module) -> list[Sharing]:
    """Returns the sharing that a model was found to allow in each situation so far."""
    return [Sharing(*found) for found in findings(module, SHARED)]


def find_cheapest_sharing(
    model: StandardizedTransformer,
    rows: Sequence[Row],
    run: Callable[[Sequence[Row], Sharing], Tensor],
    name: str,
) -> Sharing:
    """Tries the cheapest sharing under which rows have the logits that they have when they share nothing.

    Args:
        rows: Some rows; fewer at a time where they do not fit the memory.
        run: The logits of rows that share so much.
        name: Names a batch of one row, for the error.

    Raises:
        OutOfMemory: One row alone does not fit.
    """

    def find(some: Sequence[Row]) -> Sharing:
        expected = run(some, NO_SHARING)
        for sharing in _LADDER:
            try:
                found = run(some, sharing)
            except Exception as error:  # whatever else the modelling code raises, it does not allow this
                if says_nothing(error):
                    raise
                continue
            if agree(model, found, expected):
                return sharing
        return NO_SHARING

    found = list(run_halving(model, [rows], find, name))
    return Sharing(all(one.prefix for one in found), all(one.layers for one in found))


def agree(model: StandardizedTransformer, found: Tensor, expected: Tensor) -> bool:
    """True if numbers differ no more than rounding in the model's dtype makes them."""
    tolerance = TOLERANCES.get(model.module.dtype, 1e-1) * max(1.0, float(expected.abs().max()))
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance)
