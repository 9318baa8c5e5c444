"""The unpatched runs of pairs, made once for all the patches that are put into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from nnterp_mcp.engine.forward import LogitReduction
from nnterp_mcp.engine.hook_points import Place, in_order
from nnterp_mcp.engine.observation import Observed, Reference, observe, reference_of
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.model.standardized import StandardizedTransformer

_MOST = 2**28
"""Bytes that are kept, over all pairs: a control patches the same pairs again."""


@dataclass(frozen=True)
class PairRuns:
    """Both runs of a pair, with nothing put in; the corrupted one is None where states are ablated.

    The reference is the clean run, where the metric compares with it.
    """

    clean: Observed
    corrupted: Observed | None
    reference: Reference | None

    def __len__(self) -> int:
        """Their size in bytes."""
        return len(self.clean) + (0 if self.corrupted is None else len(self.corrupted))


@dataclass
class Observations:
    """The runs of pairs, by the pair's number, as far as there is room for them."""

    kept: dict[int, PairRuns] = field(default_factory=dict)

    def find(
        self,
        model: StandardizedTransformer,
        index: int,
        pair: Pair,
        places: Sequence[Place],
        asked: LogitReduction,
        *,
        patches_clean: bool,
    ) -> PairRuns:
        """The states at some places of both runs of a pair, and the keys and values of the one that is patched.

        Args:
            index: The pair's number.
            asked: The metric; it is the same in all calls.
            patches_clean: Whether the clean run is the one that is patched.
        """
        found = self.kept.get(index)
        known = set() if found is None else set(found.clean.places)
        if found is None or not known >= set(places):
            self.kept.pop(
                index, None
            )  # the cells of a grid come in groups, and their places soon are all of the grid's
            found = _run_pair(model, pair, in_order({*known, *places}), asked, patches_clean)
            if sum(map(len, self.kept.values())) + len(found) <= _MOST:
                self.kept[index] = found
        return found


def _run_pair(
    model: StandardizedTransformer, pair: Pair, places: Sequence[Place], asked: LogitReduction, patches_clean: bool
) -> PairRuns:
    compares = asked.options["metric"] == "kl"
    itself = Reference(pair.clean, None) if compares else None
    run = partial(observe, model, places=places, reduction=asked, for_branches=pair.corrupted is not None)
    clean = run(pair.clean, reference=itself, caching=patches_clean)
    corrupted, reference = None, reference_of(clean) if compares else None
    if pair.corrupted is not None:
        corrupted = run(pair.corrupted, reference=reference, caching=not patches_clean)
    return PairRuns(clean, corrupted, reference)
