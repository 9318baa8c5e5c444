"""The unpatched runs of pairs, made once for all the patches that are put into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nnterp_mcp.engine.branches import Observed, observe
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.model.standardized import StandardizedTransformer

_MOST = 2**28
"""Bytes that are kept, over all pairs: a control patches the same pairs again."""


@dataclass(frozen=True)
class PairRuns:
    """Both runs of a pair, with nothing put in; the corrupted one is None where states are ablated."""

    clean: Observed
    corrupted: Observed | None

    def __len__(self) -> int:
        """How many bytes they hold."""
        return len(self.clean) + (0 if self.corrupted is None else len(self.corrupted))


@dataclass
class Observations:
    """The runs of pairs, by the pair's number, as far as there is room for them."""

    kept: dict[int, PairRuns] = field(default_factory=dict)

    def find(
        self, model: StandardizedTransformer, index: int, pair: Pair, places: Sequence[Place], *, patches_clean: bool
    ) -> PairRuns:
        """What is at some places of both runs of a pair, and the keys and values of the one that is patched."""
        found = self.kept.get(index)
        if found is None or not found.clean.states.keys() >= set(places):
            clean = observe(model, pair.clean, places, caching=patches_clean)
            other = pair.corrupted
            found = PairRuns(clean, None if other is None else observe(model, other, places, caching=not patches_clean))
            if sum(map(len, self.kept.values())) + len(found) <= _MOST:
                self.kept[index] = found
        return found
