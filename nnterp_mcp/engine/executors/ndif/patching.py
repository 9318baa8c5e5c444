"""Activation patching on a served model: both runs stay there, and a number for each cell comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.branches import Observed
from nnterp_mcp.engine.edits import Edit
from nnterp_mcp.engine.executors.ndif.backend import PASSES, in_requests, logit_rows_at_once, run_served_pass
from nnterp_mcp.engine.executors.ndif.kernels import read_metric, read_patched_run
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.wire_format import Resolved, edit_entries, steps_of
from nnterp_mcp.engine.forward import Capture, Pass, Plan
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.readouts.reductions import take_rows
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.patching.activation_patching import Cell, Patcher, Patching
from nnterp_mcp.model.text.tokenization import Batch

_EMBEDDINGS = Place("token_embeddings")
_LOCALLY = "Load the model with backend 'local' for it."


def patch_served(patcher: Patcher, runs: Sequence[Sequence[Cell]] | None, on_batch: Callable[[int], None]) -> Patching:
    """`Patcher.patch` on a served model.

    Raises:
        Unsupported: Paths and means are not sent.
    """
    if patcher.receivers is not None:
        raise Unsupported("path patching (receivers) is not sent to NDIF", _LOCALLY)
    if patcher.ablation == "mean":
        raise Unsupported("mean ablation is not sent to NDIF", f"Ablate with zeros or resample. {_LOCALLY}")
    runs = [[cell] for cell in patcher.grid.cells] if runs is None else runs
    runs = [patcher.grid.patched_with(run) for run in runs]
    found = [_Pair(patcher, index, runs).patch(on_batch) for index in range(len(patcher.pairs))]
    clean, corrupted, values = (torch.stack(column) for column in zip(*found, strict=True))
    require_finite(values, "logits")
    return Patching(clean, None if patcher.ablation is not None else corrupted, values)


def observe_served(model: ServedTransformer, given: Input, places: Sequence[Place]) -> Observed:
    """`joined_rows.observe` on a served model, for embeddings alone: noise is made in their measure."""
    if list(places) != [_EMBEDDINGS]:
        raise Unsupported("whole runs are not brought from NDIF", _LOCALLY)
    ids = torch.tensor([given.prompt.ids])
    batch = Batch([given.prompt], {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [0])
    captures = [Capture(places[0], take_rows, _all_columns(given))]
    (states,) = run_served_pass(model, Pass(batch, captures=captures)).values
    return Observed({places[0]: states}, torch.empty(0))


def _inputs(given: Input, rows: int) -> Data:
    ids = torch.tensor([given.prompt.ids]).expand(rows, -1).contiguous()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


def _all_columns(given: Input) -> Data:
    return {"rows": torch.zeros(len(given), dtype=torch.long), "columns": torch.arange(len(given))}


@dataclass(frozen=True)
class _Pair:
    """One pair of inputs, and what is patched in it.

    Attributes:
        patcher: What is measured, and where.
        index: Which pair.
        runs: The cells of each run.
    """

    patcher: Patcher
    index: int
    runs: Sequence[Sequence[Cell]]

    @property
    def _model(self) -> ServedTransformer:
        model = self.patcher.model
        assert isinstance(model, ServedTransformer)
        return model

    @property
    def _clean(self) -> Input:
        return self.patcher.pairs[self.index].clean

    @property
    def _corrupted(self) -> Input | None:
        return self.patcher.pairs[self.index].corrupted

    @property
    def _patches_clean(self) -> bool:
        return self.patcher.direction == "noising" or self._corrupted is None

    @property
    def _base(self) -> Input:
        """The run that is patched."""
        return self._clean if self._patches_clean or self._corrupted is None else self._corrupted

    @cached_property
    def _spans(self) -> list[list[tuple[int, int]]]:
        """For each span, the positions of the run that is patched, with those that states are taken from."""
        spans = self.patcher.grid.spans[self.index]
        sides = [
            (span.clean, span.corrupted) if self._patches_clean else (span.corrupted, span.clean) for span in spans
        ]
        return [list(zip(*side, strict=True)) for side in sides]

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """All corresponding positions."""
        return sorted({at for span in self._spans for at in span})

    @cached_property
    def _places(self) -> list[Place]:
        return list(dict.fromkeys(cell.place for run in self.runs for cell in run))

    def patch(self, on_batch: Callable[[int], None]) -> tuple[Tensor, Tensor, Float[Tensor, " run"]]:
        """The metric of the clean run, of the corrupted run (the clean one where there is none), and of each run."""
        before = self.index * len(self.runs)
        both = self._both()
        size = max(1, min(self.patcher.batch_tokens // len(self._base), logit_rows_at_once(self._model)))
        rows = range(0, len(self.runs), size)
        passes = [self._rows(range(start, min(start + size, len(self.runs)))) for start in rows]
        room = PASSES - len(both)
        groups = [[*both, *passes[at : at + room]] for at in range(0, len(passes), room)]
        done = [before + min(len(self.runs), (number + 1) * room * size) for number in range(len(groups))]
        found = in_requests(self._model, groups, lambda count: on_batch(done[count - 1]))
        values = torch.cat([one["value"] for group in found for one in group[len(both) :]])
        clean, other = found[0][0], found[0][len(both) - 1]
        unpatched = clean["value"][0] if self._patches_clean else other["value"][0]
        same = torch.tensor([not self._changes(run, other) for run in self.runs])
        return clean["value"][0], other["value"][0], torch.where(same, unpatched, values)

    def _both(self) -> list[Data]:
        """The passes of the clean run and of the corrupted one."""
        passes = [self._observed(self._clean, "clean", compared=False)]
        if self._corrupted is not None:
            passes.append(self._observed(self._corrupted, "corrupted", compared=True))
        return passes

    def _observed(self, given: Input, side: str, compared: bool) -> Data:
        places = self._places if self._corrupted is not None else ()
        captures = [Capture(place, take_rows, _all_columns(given)) for place in places]
        own, other = ("clean", "corrupted") if self._patches_clean else ("corrupted", "clean")
        into, source = (torch.tensor(positions) for positions in zip(*self._pairs, strict=True))
        return self._measured(given, 1, {}, captures) | {
            "read": read_patched_run,
            "options": self._asked(given, 1)
            | {
                "clean": side == "clean",
                "names": [f"{side} {place}" for place in places],
                "compared": [(f"{own} {place}", f"{other} {place}") for place in self._places] if compared else [],
                "into": into,
                "from": source,
            },
        }

    def _rows(self, numbers: Sequence[int]) -> Data:
        """A pass with a row for each of some runs."""
        source = "corrupted" if self._patches_clean else "clean"
        entries: dict[tuple[Place, int | None], list[tuple[int, int, int]]] = {}
        for row, number in enumerate(numbers):
            for cell in self.runs[number]:
                head = cell.column if self.patcher.grid.by_head else None
                entries.setdefault((cell.place, head), []).extend((row, *at) for at in self._positions(cell))
        puts: dict[Place, list[Data]] = {}
        for (place, head), listed in entries.items():
            rows, into, index = (list(column) for column in zip(*listed, strict=True))
            change: Data = {"op": "take", "name": f"{source} {place}", "index": (torch.tensor(index),)}
            if self._corrupted is None:
                change = {"op": "scale", "value": 0.0}
            heads = None if head is None else [head]
            puts.setdefault(place, []).append(edit_entries(rows, into, heads, **change))
        one = self._measured(self._base, len(numbers), puts)
        return one | {"read": read_metric, "options": self._asked(self._base, len(numbers))}

    def _positions(self, cell: Cell) -> list[tuple[int, int]]:
        return self._pairs if self.patcher.grid.by_head else self._spans[cell.column]

    def _changes(self, run: Sequence[Cell], compared: Data) -> bool:
        """Whether any state that a run puts in differs from the one that it replaces."""
        own = "clean" if self._patches_clean else "corrupted"
        for cell in run:
            differs: Bool[Tensor, "pair head"] | None = compared.get(f"differs {own} {cell.place}")
            if differs is None:
                return True
            chosen = differs[[self._pairs.index(at) for at in self._positions(cell)]]
            if bool((chosen[:, cell.column] if self.patcher.grid.by_head else chosen).any()):
                return True
        return False

    def _measured(
        self, given: Input, rows: int, puts: Mapping[Place, Sequence[Data]], captures: Sequence[Capture] = ()
    ) -> Data:
        """A pass of so many rows with the noise and the operations that are in force, and with what is put in."""
        edits: dict[Place, list[Edit]] = {}
        if given.noise is not None:
            numbers = [row for row in range(rows) for _ in range(len(given))]
            noise = edit_entries(numbers, [*range(len(given))] * rows, op="add", value=given.noise.repeat(rows, 1))
            edits[_EMBEDDINGS] = [Resolved(_EMBEDDINGS, noise)]
        for place, listed in given.plan.edits.items():
            edits.setdefault(place, []).extend(listed)
        for place, listed in puts.items():
            edits.setdefault(place, []).extend(Resolved(place, put) for put in listed)
        window = Window([given.prompt] * rows, [0] * rows, 0, len(given))
        end = (torch.arange(rows), torch.full((rows,), len(given) - 1))
        steps = steps_of(self._model, window, Plan(edits), captures, end)
        return {"inputs": {**_inputs(given, rows), "logits_to_keep": 1}, "steps": steps}

    def _asked(self, given: Input, rows: int) -> Data:
        targets = self.patcher.targets[self.patcher.pairs[self.index].index] if self.patcher.targets else ()
        return {
            "head": self._model.head,
            "rows": torch.arange(rows),
            "columns": torch.zeros(rows, dtype=torch.long),
            "metric": self.patcher.metric,
            "targets": [list(tokens) for tokens in targets],
        }
