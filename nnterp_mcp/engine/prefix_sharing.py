"""How much of a forward pass rows of one prompt may share, found by trying it on the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from nnterp_mcp.engine.batching import run_halving
from nnterp_mcp.model.loading.load_checks import TOLERANCES
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.standardized import StandardizedTransformer

Row = TypeVar("Row")


@dataclass(frozen=True)
class Sharing:
    """What the rows share with the unpatched prompt.

    Attributes:
        prefix: Keys and values of the tokens before the patched position.
        layers: The layers up to the patched one.
    """

    prefix: bool
    layers: bool


NO_SHARING = Sharing(prefix=False, layers=False)
_LADDER = (Sharing(True, True), Sharing(True, False), Sharing(False, True))
"""What is tried, the cheapest first; sharing nothing is right for every model."""


def find_cheapest_sharing(
    model: StandardizedTransformer,
    rows: Sequence[Row],
    run: Callable[[Sequence[Row], Sharing], Tensor],
    what: str,
) -> Sharing:
    """The cheapest sharing under which rows give what they give when they share nothing.

    Args:
        model: The model.
        rows: Some rows; fewer at a time where they do not fit the memory.
        run: The logits of rows that share so much.
        what: Names a batch of one row, for the error.

    Raises:
        OutOfMemory: One row alone does not fit.
    """

    def find(some: Sequence[Row]) -> Sharing:
        expected = run(some, NO_SHARING)
        tolerance = TOLERANCES.get(model.module.dtype, 1e-1) * max(1.0, float(expected.abs().max()))
        for sharing in _LADDER:
            try:
                found = run(some, sharing)
            except Exception as error:  # whatever else the modelling code raises, it does not allow this
                if says_nothing(error):
                    raise
                continue
            if found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance):
                return sharing
        return NO_SHARING

    found = list(run_halving(model, [rows], find, what))
    return Sharing(all(one.prefix for one in found), all(one.layers for one in found))
