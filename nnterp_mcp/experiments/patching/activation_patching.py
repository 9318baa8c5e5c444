"""Activation patching: states of one run replace those of another, cell by cell of a grid.

A clean state that brings the answer back in a corrupted run (denoising) suffices; a corrupted state that breaks it in a
clean run (noising) was needed. The two need not be the same cells.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.branches import Branches
from nnterp_mcp.engine.edits import StateEdit
from nnterp_mcp.engine.forward import LogitReduction
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.engine.observation import Observed, Reference
from nnterp_mcp.engine.readouts.metrics import MetricName, reduce_to_metric
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.replacements import Replacement, replace_states
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.patching.alignment import LabelledSpans, Span, align
from nnterp_mcp.experiments.patching.corruption import Pair, observe_mean
from nnterp_mcp.experiments.patching.exchange import Exchange
from nnterp_mcp.experiments.patching.path_patching import PathBranches, Receiver
from nnterp_mcp.experiments.patching.run_cache import Observations, PairRuns
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.positions import PositionSpec
from nnterp_mcp.request.selectors import resolve_indices, resolve_layers
from nnterp_mcp.request.sites import HEAD_SITES, Site

Direction = Literal["denoising", "noising"]
Ablation = Literal["zero", "mean"]

_WORK = Workload(())


@dataclass(frozen=True)
class Cell:
    """One place of a grid.

    Attributes:
        site: Where in the layer.
        layer: The layer.
        column: Which span, or which head or neuron where the grid is by these.
        whole: In a grid by heads, all of a site that has none; `column` is then 0.
    """

    site: Site
    layer: int
    column: int
    whole: bool = False

    @property
    def place(self) -> Place:
        """Its site and layer."""
        return Place(self.site, self.layer)


@dataclass(frozen=True)
class Grid:
    """The cells to patch.

    Attributes:
        cells: The cells: by site, then layer, then column.
        spans: The spans of each pair.
        by_unit: Columns are heads or neurons, patched at all spans together, as are whole sites; else they are spans.
        windows: Where several adjacent layers are patched together, those of each cell, itself included.
    """

    cells: list[Cell]
    spans: list[list[Span]]
    by_unit: bool
    windows: Mapping[Cell, Sequence[Cell]] = field(default_factory=dict)

    def patched_with(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells themselves, or their windows."""
        return list(dict.fromkeys(part for cell in cells for part in self.windows.get(cell, (cell,))))


@dataclass(frozen=True)
class Patching:
    """The metric of clean, corrupted and patched runs, on the CPU.

    Attributes:
        clean: The metric of each clean run.
        corrupted: That of each corrupted run; None where states were ablated.
        values: That of each patched run.
        by_construction: Patched runs whose metric follows from what is replaced: the residual stream wherever the two
            runs differ, or at the last position after the last layer.
    """

    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"] | None
    values: Float[Tensor, "pair run"]
    by_construction: Bool[Tensor, " run"]


def make_grid(
    model: StandardizedTransformer,
    pairs: Sequence[Pair],
    sites: Sequence[Site],
    *,
    layers: str | int | Sequence[int] = "all",
    positions: Sequence[PositionSpec] | LabelledSpans = ("all",),
    heads: str | int | Sequence[int] | None = None,
    wholes: Collection[Site] = (),
    window: int = 1,
) -> Grid:
    """Resolves sites, layers, positions and heads to cells.

    Args:
        pairs: The pairs of inputs.
        layers: The layers; of `all`, those that have the site.
        positions: The tokens, each patched by itself, or labelled spans; with heads, all of them together.
        heads: The heads, or at the site `neurons` the neurons, that make the columns, each patched by itself; None for
            a grid of layers and positions, in which all are patched.
        wholes: With heads, the sites without any of which each layer is a cell, patched as a whole.
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
        alone = site in wholes
        if heads is not None and site not in HEAD_SITES and site != "neurons" and not alone:
            having = ", ".join(sorted(HEAD_SITES - {"attention_probabilities"}))
            raise InvalidRequest(f"there are no heads at {site}: those that have some are {having}.")
        for layer in _layers_with(model, site, layers):
            if alone and heads is not None:
                cells.append(Cell(site, layer, 0, whole=True))
                continue
            columns = range(len(spans[0])) if heads is None else _units(model, site, heads, layer)
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


def _units(model: StandardizedTransformer, site: Site, asked: str | int | Sequence[int], layer: int) -> list[int]:
    asked, facts = asked if isinstance(asked, str | int) else tuple(asked), model.anatomy.layers[layer]
    count, unit = (facts.num_neurons, "neuron") if site == "neurons" else (facts.num_heads, "head")
    return resolve_indices(asked, count, unit, f"layer {layer} of {model.name}")


@dataclass(frozen=True)
class Patcher:
    """Patches cells of a grid, in any combinations.

    Attributes:
        model: The model.
        pairs: The pairs of inputs.
        grid: The grid.
        direction: The run that is patched: the corrupted one with clean states (denoising), or the clean one.
        metric: The metric after the last token.
        targets: Token ids for each prompt of the request: of the answer, then of the wrong answer.
        ablation: Replaces states of the clean run where there is no corrupted one.
        mean_over: The inputs whose position-wise mean a mean ablation takes; the clean ones by default.
        receivers: Where set, an effect counts only along paths to these; empty for the logits themselves.
        through_mlps: MLPs on such a path are recomputed; else they are frozen too, so that the path is the residual
            stream alone.
    """

    model: StandardizedTransformer
    pairs: Sequence[Pair]
    grid: Grid
    direction: Direction = "denoising"
    metric: MetricName = "logit_difference"
    targets: Sequence[Sequence[Sequence[int]]] = ()
    ablation: Ablation | None = None
    mean_over: Sequence[Input] = ()
    receivers: Sequence[Receiver] | None = None
    through_mlps: bool = True
    _runs: Observations = field(default_factory=Observations, init=False, repr=False, compare=False)

    @torch.inference_mode()
    def patch(self, runs: Sequence[Sequence[Cell]] | None = None, work: Workload = _WORK) -> Patching:
        """Runs each pair once for every combination of cells, all of whose states are replaced together.

        A combination of which every state equals the run's own is not run: it is the unpatched run.

        Args:
            runs: The combinations; each cell by itself by default. Cells stand for their windows.
            work: The size of batches, and where progress is reported, in runs over all pairs.

        Raises:
            Unsupported: The model cannot do it; by name.

        Source: Meng et al., "Locating and Editing Factual Associations in GPT" (2022); Heimersheim and Nanda, "How to
        use and interpret activation patching" (2024).
        """
        runs = [[cell] for cell in self.grid.cells] if runs is None else runs
        runs = [self.grid.patched_with(run) for run in runs]
        places = list(dict.fromkeys(cell.place for run in runs for cell in run))
        ablated = self._ablated(places)
        found = [self._patch_pair(index, runs, places, ablated, work) for index in range(len(self.pairs))]
        clean, corrupted, values, follows = zip(*found, strict=True)
        return Patching(
            torch.tensor(clean),
            None if ablated is not None else torch.tensor(corrupted),
            torch.stack(values),
            torch.tensor(follows).all(0),
        )

    def _ablated(self, places: Sequence[Place]) -> Mapping[Place, Tensor] | None:
        """The states that an ablation puts in; none for zeros."""
        if self.ablation != "mean":
            return None if self.ablation is None else {}
        return observe_mean(self.model, self.mean_over or [pair.clean for pair in self.pairs], places)

    def _patch_pair(
        self,
        index: int,
        runs: Sequence[Sequence[Cell]],
        places: Sequence[Place],
        ablated: Mapping[Place, Tensor] | None,
        work: Workload,
    ) -> tuple[float, float, Tensor, list[bool]]:
        """The metric of the clean, the corrupted and each patched run; which of these follow by construction."""
        found = self.run_pair(index, places)
        own, other = self.exchanged(index, found)
        exchange = Exchange(
            own, other, ablated or {}, self.corresponding(index), self.grid.by_unit, self.receivers is not None
        )
        news = [
            new
            for row, run in enumerate(runs)
            for cell in run
            if (new := exchange.replacement(row, cell.place, cell.column, whole=cell.whole)) is not None
        ]
        good, bad, values = self.replace(index, found, news, len(runs), work)
        last = Place("layers_output", self.model.anatomy.last.index)
        return good, bad, values, [exchange.decides([(c.place, c.column) for c in run], last) for run in runs]

    def run_pair(self, index: int, places: Sequence[Place]) -> PairRuns:
        """The unpatched runs of a pair, with their states at some places."""
        clean_first = self._patches_clean(self.pairs[index])
        return self._runs.find(
            self.model, index, self.pairs[index], places, self._asked(index), patches_clean=clean_first
        )

    def exchanged(self, index: int, found: PairRuns) -> tuple[Observed, Observed | None]:
        """The run of a pair that is patched, and the one that states are taken from; None where they are ablated."""
        if self._patches_clean(self.pairs[index]):
            return found.clean, found.corrupted
        assert found.corrupted is not None
        return found.corrupted, found.clean

    def replace(
        self, index: int, found: PairRuns, news: Sequence[Replacement], runs: int, work: Workload
    ) -> tuple[float, float, Float[Tensor, " run"]]:
        """The metric of both runs of a pair, and of runs in which states are replaced.

        Args:
            index: The pair's number.
            found: Its unpatched runs.
            news: The replacements, whose rows are the numbers of the runs.
            runs: How many runs there are.
            work: The size of batches, and where progress is reported.
        """
        own, _ = self.exchanged(index, found)
        values = self._measure(index, own, replace_states(news), self._asked(index), found.reference, runs, work)
        for run in (found.clean, found.corrupted):
            if run is not None:
                require_finite(run.numbers["total"], "logits")
        good = float(found.clean.numbers["value"])
        return good, good if found.corrupted is None else float(found.corrupted.numbers["value"]), values

    def _asked(self, index: int) -> LogitReduction:
        return reduce_to_metric(self.metric, self.targets[self.pairs[index].index] if self.targets else ())

    def _patches_clean(self, pair: Pair) -> bool:
        return self.direction == "noising" or pair.corrupted is None

    def corresponding(self, index: int) -> list[list[tuple[int, int]]]:
        """For each span of a pair, the positions of the run that is patched, with those that states are taken from."""
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
        work: Workload,
    ) -> Float[Tensor, " run"]:
        """The metric of each run; those that no edit reaches have that of the unpatched run."""
        measured: dict[int, Tensor] = {}
        done = (index + 1) * runs - len({row for edit in edits for row in edit.reach.positions})
        branch = partial(
            Branches,
            self.model,
            own.given,
            reduction=lambda order: asked,
            reference=reference,
            work=work,
            own=own,
        )
        if self.receivers is None:
            branches = branch(edits)
        else:
            branches = PathBranches(self.model, branch, edits, self.receivers, self.through_mlps)
        for batch in branches.run():
            require_finite(batch.numbers["total"], "logits")
            measured |= zip(batch.rows, batch.numbers["value"][1:], strict=True)
            done += len(batch.rows)
            work.progress(min(done, (index + 1) * runs), len(self.pairs) * runs, "runs")
        values = own.numbers["value"].repeat(runs)
        if measured:
            values[list(measured)] = torch.stack(list(measured.values()))
        return values.cpu()
