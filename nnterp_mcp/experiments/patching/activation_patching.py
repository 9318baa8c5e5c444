"""Activation patching: states of one run put into another, cell by cell of a grid.

What comes back when a clean state is put into a corrupted run (denoising) is enough to carry the answer there; what
breaks when a corrupted state is put into a clean run (noising) is needed there. The two need not be the same cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.branches import Branches
from nnterp_mcp.engine.edits import StateEdit
from nnterp_mcp.engine.forward import LogitReduction
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.engine.observation import Observed, Reference
from nnterp_mcp.engine.readouts.metrics import MetricName, reduce_to_metric
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.replacements import Replacement, SourceStates, replace_states
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.patching.alignment import LabelledSpans, Span, align
from nnterp_mcp.experiments.patching.corruption import Pair, observe_mean
from nnterp_mcp.experiments.patching.path_patching import PathBranches, Receiver
from nnterp_mcp.experiments.patching.run_cache import Observations
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.positions import PositionSpec
from nnterp_mcp.request.selectors import resolve_indices, resolve_layers
from nnterp_mcp.request.sites import HEAD_SITES, Site

Direction = Literal["denoising", "noising"]
Ablation = Literal["zero", "mean"]


@dataclass(frozen=True)
class Cell:
    """One place of a grid.

    Attributes:
        site: Where in the layer.
        layer: The layer.
        column: Which span, or which head where the grid is by head.
    """

    site: Site
    layer: int
    column: int

    @property
    def place(self) -> Place:
        """Its site and layer."""
        return Place(self.site, self.layer)


@dataclass(frozen=True)
class Grid:
    """What is patched.

    Attributes:
        cells: The cells: by site, then layer, then column.
        spans: The spans of each pair.
        by_head: Whether columns are heads, patched at all spans together; else they are spans.
        windows: Where several adjacent layers are patched together, those of each cell, itself included.
    """

    cells: list[Cell]
    spans: list[list[Span]]
    by_head: bool
    windows: Mapping[Cell, Sequence[Cell]] = field(default_factory=dict)

    def patched_with(self, cells: Sequence[Cell]) -> list[Cell]:
        """All that is patched for some cells: themselves, or their windows."""
        return list(dict.fromkeys(part for cell in cells for part in self.windows.get(cell, (cell,))))


@dataclass(frozen=True)
class Patching:
    """What patching did to the metric, on the CPU.

    Attributes:
        clean: The metric of each clean run.
        corrupted: That of each corrupted run; None where states were ablated.
        values: That of each patched run.
    """

    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"] | None
    values: Float[Tensor, "pair run"]


def make_grid(
    model: StandardizedTransformer,
    pairs: Sequence[Pair],
    sites: Sequence[Site],
    *,
    layers: str | int | Sequence[int] = "all",
    positions: Sequence[PositionSpec] | LabelledSpans = ("all",),
    heads: str | int | Sequence[int] | None = None,
    window: int = 1,
) -> Grid:
    """Resolves what is to be patched.

    Args:
        model: The model.
        pairs: The pairs of inputs.
        sites: Where.
        layers: The layers; of `all`, those that have the site.
        positions: The tokens, each patched by itself, or labelled spans; with heads, all of them together.
        heads: The heads that make the columns, each patched by itself; None for a grid of layers and positions, in
            which all heads are patched.
        window: How many adjacent layers each cell patches together, about its own layer, as causal tracing does for
            attention and MLPs: one layer alone adds little to what those about it write. Fewer at either end.

    Raises:
        InvalidRequest: A layer, head or position does not exist, tokens do not correspond, heads are asked for at a
            site that has none, or windows of heads.
        Unsupported: The model does not have the site.
    """
    if window > 1 and heads is not None:
        raise InvalidRequest(
            f"a window of {window} layers cannot be patched by head: head 3 of one layer is not head 3 of the next.",
            "Leave out heads or window.",
        )
    spans = align(pairs, positions)
    cells: list[Cell] = []
    windows: dict[Cell, list[Cell]] = {}
    for site in dict.fromkeys(sites):
        if heads is not None and site not in HEAD_SITES:
            having = ", ".join(sorted(HEAD_SITES - {"attention_probabilities"}))
            raise InvalidRequest(f"there are no heads at {site}: those that have some are {having}.")
        for layer in _layers_with(model, site, layers):
            columns = range(len(spans[0])) if heads is None else _heads(model, heads, layer)
            cells += [Cell(site, layer, column) for column in columns]
        if window > 1:
            having = _layers_with(model, site, "all")
            windows |= {cell: _around(cell, window, having) for cell in cells if cell.site == site}
    return Grid(cells, spans, heads is not None, windows)


def _around(cell: Cell, window: int, having: Sequence[int]) -> list[Cell]:
    """The cells of so many layers about a cell's own, of those that there are."""
    first = cell.layer - window // 2
    return [replace(cell, layer=layer) for layer in having if first <= layer < first + window]


def _layers_with(model: StandardizedTransformer, site: Site, asked: str | int | Sequence[int]) -> list[int]:
    having: list[int] = []
    refusal: Unsupported | None = None
    for layer in resolve_layers(asked, model.num_layers, model.name):
        try:
            require_place(model, Place(site, layer))
            having.append(layer)
        except Unsupported as error:
            refusal = error
    if refusal is not None and (asked != "all" or not having):
        raise refusal
    return having


def _heads(model: StandardizedTransformer, asked: str | int | Sequence[int], layer: int) -> list[int]:
    asked = asked if isinstance(asked, str | int) else tuple(asked)
    return resolve_indices(asked, model.anatomy.layers[layer].num_heads, "head", f"layer {layer} of {model.name}")


@dataclass(frozen=True)
class Patcher:
    """Patches cells of a grid, in any combinations.

    Attributes:
        model: The model.
        pairs: The pairs of inputs.
        grid: The grid.
        direction: Which run is patched: the corrupted one with clean states (denoising), or the clean one.
        metric: What is measured.
        targets: Token ids for each prompt of the request: of the answer, then of the wrong answer.
        ablation: What is put into the clean run where there is no corrupted one.
        receivers: Where set, an effect counts only along direct paths to these; empty for the logits themselves.
        through_mlps: Whether such a path may go through MLPs.
        batch_tokens: Tokens in a batch, at most, over all its rows.
    """

    model: StandardizedTransformer
    pairs: Sequence[Pair]
    grid: Grid
    direction: Direction = "denoising"
    metric: MetricName = "logit_difference"
    targets: Sequence[Sequence[Sequence[int]]] = ()
    ablation: Ablation | None = None
    receivers: Sequence[Receiver] | None = None
    through_mlps: bool = True
    batch_tokens: int = 4096
    _runs: Observations = field(default_factory=Observations, init=False, repr=False, compare=False)

    @torch.inference_mode()
    def patch(
        self, runs: Sequence[Sequence[Cell]] | None = None, on_batch: Callable[[int], None] = lambda runs_done: None
    ) -> Patching:
        """Runs each pair once for every combination of cells, all of whose states are put in together.

        A combination of which every state equals the run's own is not run: it is the unpatched run.

        Args:
            runs: The combinations; each cell by itself by default. Cells stand for their windows.
            on_batch: Called after each batch with the number of runs done, over all pairs; what it raises ends it.

        Raises:
            Unsupported: The model cannot do it; by name.

        Source: Meng et al., "Locating and Editing Factual Associations in GPT" (2022); Heimersheim and Nanda, "How to
        use and interpret activation patching" (2024).
        """
        runs = [[cell] for cell in self.grid.cells] if runs is None else runs
        runs = [self.grid.patched_with(run) for run in runs]
        places = list(dict.fromkeys(cell.place for run in runs for cell in run))
        ablated = self._ablated(places)
        found = [self._patch_pair(index, runs, places, ablated, on_batch) for index in range(len(self.pairs))]
        corrupted = None if ablated is not None else torch.tensor([bad for _, bad, _ in found])
        clean = torch.tensor([good for good, _, _ in found])
        return Patching(clean, corrupted, torch.stack([values for *_, values in found]))

    def _ablated(self, places: Sequence[Place]) -> Mapping[Place, Tensor] | None:
        """What an ablation puts in; zeros are made to measure."""
        if self.ablation is None:
            return None
        return observe_mean(self.model, [pair.clean for pair in self.pairs], places) if self.ablation == "mean" else {}

    def _patch_pair(
        self,
        index: int,
        runs: Sequence[Sequence[Cell]],
        places: Sequence[Place],
        ablated: Mapping[Place, Tensor] | None,
        on_batch: Callable[[int], None],
    ) -> tuple[float, float, Tensor]:
        """The metric of the clean run, of the corrupted run, and of each patched run."""
        pair = self.pairs[index]
        patches_clean = self._patches_clean(pair)
        asked = reduce_to_metric(self.metric, self.targets[pair.index] if self.targets else ())
        found = self._runs.find(self.model, index, pair, places, asked, patches_clean=patches_clean)
        clean, corrupted = found.clean, found.corrupted
        own, other = (clean, corrupted) if patches_clean else (corrupted, clean)
        assert own is not None
        exchange = _Exchange(own, other, ablated or {}, self._corresponding(index), self.grid.by_head)
        edits = replace_states(
            new for row, run in enumerate(runs) for cell in run if (new := exchange.replacement(row, cell)) is not None
        )
        values = self._measure(index, own, edits, asked, found.reference, len(runs), on_batch)
        for run in (clean, corrupted):
            if run is not None:
                require_finite(run.numbers["total"], "logits")
        good = float(clean.numbers["value"])
        return good, good if corrupted is None else float(corrupted.numbers["value"]), values

    def _patches_clean(self, pair: Pair) -> bool:
        return self.direction == "noising" or pair.corrupted is None

    def _corresponding(self, index: int) -> list[list[tuple[int, int]]]:
        """For each span, the positions of the run that is patched, with those that states are taken from."""
        clean_first = self._patches_clean(self.pairs[index])
        return [
            list(zip(*((span.clean, span.corrupted) if clean_first else (span.corrupted, span.clean)), strict=True))
            for span in self.grid.spans[index]
        ]

    def _measure(
        self,
        index: int,
        own: Observed,
        edits: Sequence[StateEdit],
        asked: LogitReduction,
        reference: Reference | None,
        runs: int,
        on_batch: Callable[[int], None],
    ) -> Float[Tensor, " run"]:
        """The metric of each run; those that no edit reaches have that of the unpatched run."""
        measured: dict[int, Tensor] = {}
        done = (index + 1) * runs - len({row for edit in edits for row in edit.reach.positions})
        make = Branches if self.receivers is None else partial(PathBranches, self.receivers, self.through_mlps)
        branches = make(
            self.model,
            own.given,
            edits,
            reduction=lambda order: asked,
            reference=reference,
            batch_tokens=self.batch_tokens,
            own=own,
        )
        for batch in branches.run():
            require_finite(batch.numbers["total"], "logits")
            measured |= zip(batch.rows, batch.numbers["value"][1:], strict=True)
            done += len(batch.rows)
            on_batch(min(done, (index + 1) * runs))
        values = own.numbers["value"].repeat(runs)
        if measured:
            values[list(measured)] = torch.stack(list(measured.values()))
        return values.cpu()


@dataclass(frozen=True)
class _Exchange:
    """States of another run for those of a run's own.

    Attributes:
        own: The run that is patched.
        other: The run from which states are taken; None where states are ablated.
        means: The states that an ablation puts in, by place; zeros where there are none.
        spans: The positions of each span, with those that states are taken from.
        by_head: Whether a cell's column is a head.
    """

    own: Observed
    other: Observed | None
    means: Mapping[Place, Tensor]
    spans: Sequence[Sequence[tuple[int, int]]]
    by_head: bool

    def replacement(self, row: int, cell: Cell) -> Replacement | None:
        """The states of a cell that differ from the run's own; None if none do."""
        pairs = sorted({at for span in self.spans for at in span}) if self.by_head else self.spans[cell.column]
        heads = (cell.column,) if self.by_head else None
        other = self.other
        if other is not None and not other.states:
            pairs = [(at, source) for at, source in pairs if not self.own.given.agrees(at, other.given, source)]
            states = SourceStates(other, [source for _, source in pairs])
            return Replacement(row, cell.place, [at for at, _ in pairs], states, heads) if pairs else None
        into, from_ = [at for at, _ in pairs], [at for _, at in pairs]
        known = self.means if other is None else other.states
        own = self.own.states[cell.place][into]
        states = known[cell.place][from_] if cell.place in known else torch.zeros_like(own)
        if self.by_head:
            own, states = own[:, [cell.column]], states[:, [cell.column]]
        differing = (own != states).flatten(1).any(1).nonzero()[:, 0].tolist()
        if not differing:
            return None
        return Replacement(row, cell.place, [into[index] for index in differing], states[differing], heads)
