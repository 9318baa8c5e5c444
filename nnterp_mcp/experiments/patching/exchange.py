"""States of one run that go into another, cell by cell."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.observation import Observed
from nnterp_mcp.engine.replacements import Replacement, SourceStates
from nnterp_mcp.request.sites import Site

_RESIDUAL: frozenset[Site] = frozenset({"layers_input", "layers_output", "token_embeddings"})


@dataclass(frozen=True)
class Exchange:
    """States of another run for those of a run's own.

    Attributes:
        own: The run that is patched.
        other: The run from which states are taken; None where states are ablated.
        means: The states that an ablation puts in, by place; zeros where there are none.
        spans: The positions of each span, with those that states are taken from.
        by_unit: A cell's column is a head or a neuron.
        along_paths: The rest of the run is frozen.
    """

    own: Observed
    other: Observed | None
    means: Mapping[Place, Tensor]
    spans: Sequence[Sequence[tuple[int, int]]]
    by_unit: bool
    along_paths: bool
    _differing: dict[Place, list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def decides(self, run: Sequence[tuple[Place, int]], last: Place) -> bool:
        """Checks that the metric follows from a run's cells, whatever the model computes between them and the logits.

        Args:
            run: The place and the column of each cell.
            last: The output of the last layer.
        """
        return any(
            self._decides(place, {at for where, column in run if where == place for at in self._pairs(column)}, last)
            for place in {where for where, _ in run}
        )

    def _decides(self, place: Place, covered: Collection[tuple[int, int]], last: Place) -> bool:
        if place.site not in _RESIDUAL:
            return False
        length = len(self.own.given)
        other = length if self.other is None else len(self.other.given)
        if place == last and (length - 1, other - 1) in covered:
            return True
        if self.along_paths or other != length:
            return False
        if place not in self._differing:
            self._differing[place] = self._find_differing(place)
        return all((at, at) in covered for at in self._differing[place])

    def _find_differing(self, place: Place) -> list[int]:
        """Positions at which the states that are put in are not the run's own."""
        if self.other is not None and not self.other.states:
            given, other = self.own.given, self.other.given
            return [at for at in range(len(given)) if not given.agrees(at, other, at)]
        own = self.own.states[place]
        known = self.means if self.other is None else self.other.states
        differs = own != known[place] if place in known else own != 0
        return differs.flatten(1).any(1).nonzero()[:, 0].tolist()

    def _pairs(self, column: int) -> Sequence[tuple[int, int]]:
        return sorted({at for span in self.spans for at in span}) if self.by_unit else self.spans[column]

    def replacement(self, row: int, place: Place, column: int, *, whole: bool = False) -> Replacement | None:
        """The states of a cell that differ from the run's own; None if none do.

        Args:
            row: The number of the run.
            place: The cell's place.
            column: Its column.
            whole: The place has no heads or neurons, though the grid is by these.
        """
        pairs, other = self._pairs(column), self.other
        units = (column,) if self.by_unit and not whole else None
        if other is not None and not other.states:
            pairs = [(at, source) for at, source in pairs if not self.own.given.agrees(at, other.given, source)]
            states = SourceStates(other, [source for _, source in pairs])
            return Replacement(row, place, [at for at, _ in pairs], states, units) if pairs else None
        into, from_ = [at for at, _ in pairs], [at for _, at in pairs]
        known = self.means if other is None else other.states
        own = self.own.states[place][into]
        states = known[place][from_] if place in known else torch.zeros_like(own)
        if units is not None:
            own, states = own[:, [column]], states[:, [column]]
        differing = (own != states).flatten(1).any(1).nonzero()[:, 0].tolist()
        if not differing:
            return None
        return Replacement(row, place, [into[index] for index in differing], states[differing], units)
