"""Many runs of a few prompts, each with a vector of its own added to the residual stream after one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.constants import indices, on_device
from nnterp_mcp.engine.edits import Edit, EditOfRuns, StateEdit, States
from nnterp_mcp.engine.forward import Plan, forward
from nnterp_mcp.engine.generation import generate
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.patched_rows import LOGITS_AT_ONCE, PatchedBatch, Target, run_patched
from nnterp_mcp.engine.token_spans import Reach, goes_on
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.activations import read_states
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt
from nnterp_mcp.request.positions import PositionSpec


@dataclass(frozen=True)
class Run:
    """A prompt, and what is added to its states.

    Attributes:
        prompt: The prompt; runs of one prompt follow one another.
        layer: The layer after which the vector is added; None in a baseline, which is its prompt's first run.
        vector: What is added.
    """

    prompt: EncodedPrompt
    layer: int | None = None
    vector: Float[Tensor, " hidden"] | None = None


ReadRuns = Iterator[tuple[list[int], Float[Tensor, "run vocabulary"]]]
"""Runs by their place in the list, with the logits after their prompt; a prompt's baseline before its other runs."""


class Additions(Protocol):
    """A way to make runs."""

    def read(self) -> ReadRuns:
        """Makes every run, a batch at a time."""
        ...

    def generate(
        self, runs: Sequence[int], max_new_tokens: int, on_token: Callable[[int], None]
    ) -> dict[int, list[int]]:
        """What some of the runs go on to say, greedily; the vector is added at new tokens where positions go on."""
        ...


def additions(
    model: StandardizedTransformer,
    runs: Sequence[Run],
    positions: Sequence[PositionSpec],
    plan: Plan,
    *,
    generating: bool,
    batch_tokens: int,
) -> Additions:
    """The cheapest exact way to make runs.

    Args:
        model: The model.
        runs: The runs.
        positions: Where each run's vector is added.
        plan: The other operations, planned for the prompts; they act in all runs.
        generating: Whether text will be generated.
        batch_tokens: Padded tokens in a forward pass, at most.

    Raises:
        InvalidRequest: A position does not exist, or a vector does not fit.
        Unsupported: The model cannot do it; by name.
    """
    where = {run.prompt.index: resolve_positions(positions, run.prompt) for run in runs if run.layer is None}
    onward = goes_on(positions)
    steered = any(run.layer is not None for run in runs)
    if steered and not plan and all(len(at) == 1 for at in where.values()) and not (onward and generating):
        return _AtOnePosition(model, runs, {prompt: at for prompt, (at,) in where.items()}, batch_tokens)
    rows, steering = spread_over_rows(runs, positions, plan)
    return _Everywhere(model, rows, steering, batch_tokens)


def spread_over_rows(
    runs: Sequence[Run], positions: Sequence[PositionSpec], plan: Plan
) -> tuple[list[EncodedPrompt], Plan]:
    """Each run as a prompt of its own, numbered by its place, and the edits of all of them; as in `additions`."""
    where = {run.prompt.index: resolve_positions(positions, run.prompt) for run in runs if run.layer is None}
    rows = [replace(run.prompt, index=row) for row, run in enumerate(runs)]
    owners = [run.prompt for run in runs]
    edits = {place: [EditOfRuns(edit, owners) for edit in listed] for place, listed in plan.edits.items()}
    return rows, with_edits(Plan(edits, plan.labels), _edits(runs, where, goes_on(positions)))


@dataclass(frozen=True)
class _Everywhere:
    """Each run is a row that is computed whole."""

    model: StandardizedTransformer
    rows: Sequence[EncodedPrompt]
    steering: Plan
    batch_tokens: int

    def read(self) -> ReadRuns:
        """Makes every run, a batch at a time."""
        model = self.model
        count = max(1, LOGITS_AT_ONCE // model.vocab_size)

        def end(batch: Batch, numbers: Sequence[int]) -> Float[Tensor, "row vocabulary"]:
            ends = [(row, len(prompt.ids) - 1) for row, prompt in enumerate(batch.prompts)]
            logits = forward(model, batch, self.steering, logits=ends).logits
            assert logits is not None
            return logits

        work = Workload(self.rows, batch_tokens=self.batch_tokens, batch_size=count)
        for rows, logits in work.run_batches(model, end):
            yield list(rows), logits

    def generate(
        self, runs: Sequence[int], max_new_tokens: int, on_token: Callable[[int], None]
    ) -> dict[int, list[int]]:
        """What some of the runs go on to say."""
        said = generate(
            self.model,
            Workload(
                [self.rows[run] for run in runs],
                self.steering,
                self.batch_tokens,
                lambda done, total, unit: on_token(done),
            ),
            max_new_tokens=max_new_tokens,
        )
        return {generation.prompt: generation.ids for generation in said}


@dataclass(frozen=True)
class _AtOnePosition:
    """The state at the position is known beforehand: the unsteered one and what is added.

    Rows that put it in share the keys and values before the position, and the layers below, where that is exact.
    """

    model: StandardizedTransformer
    runs: Sequence[Run]
    where: Mapping[int, int]
    batch_tokens: int

    def read(self) -> ReadRuns:
        """Makes every run, a batch at a time."""
        for baseline, steered in self._by_prompt(range(len(self.runs))):
            for index, batch in enumerate(self._run(steered, 0)):
                rows = [steered[row] for row in batch.rows]
                if index == 0:
                    yield [baseline, *rows], torch.cat([batch.unpatched_logits[None], batch.logits])
                else:
                    yield rows, batch.logits

    def generate(
        self, runs: Sequence[int], max_new_tokens: int, on_token: Callable[[int], None]
    ) -> dict[int, list[int]]:
        """What some of the runs go on to say."""
        said: dict[int, list[int]] = {}
        for baseline, steered in self._by_prompt(runs):
            for batch in self._run(steered, max_new_tokens):
                said[baseline] = batch.unpatched_continuation
                said |= {steered[row]: ids for row, ids in zip(batch.rows, batch.continuations, strict=True)}
                on_token(len(said))
        return said

    def _by_prompt(self, runs: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """The baseline and the steered runs of each prompt."""
        for _, group in groupby(runs, lambda run: self.runs[run].prompt.index):
            baseline, *steered = group
            yield baseline, steered

    def _run(self, steered: Sequence[int], max_new_tokens: int) -> Iterator[PatchedBatch]:
        runs = [self.runs[run] for run in steered]
        prompt, position = runs[0].prompt, self.where[runs[0].prompt.index]
        layers = [run.layer for run in runs if run.layer is not None]
        read = sorted(set(layers))
        (states,) = read_states(self.model, Workload([prompt]), [[position]], read)
        put = [
            states[read.index(run.layer)] + run.vector.to(states)
            for run in runs
            if run.layer is not None and run.vector is not None
        ]
        return run_patched(
            self.model,
            Target(tuple(prompt.ids), position),
            torch.stack(put),
            layers,
            max_new_tokens=max_new_tokens,
            batch_tokens=self.batch_tokens,
        )


@dataclass(frozen=True)
class AddedByRow:
    """The states plus a vector of each row's own."""

    vectors: Float[Tensor, "steered hidden"]
    of_row: Mapping[int, int]

    def resolve(self, states: States) -> Data:
        """The vector of each entry."""
        rows = indices([self.of_row[row] for row, _ in states.chosen.entries], states.device)
        return {"op": "add", "value": on_device(self.vectors, states.device)[rows]}


def _edits(runs: Sequence[Run], where: Mapping[int, Sequence[int]], onward: bool) -> list[Edit]:
    """One edit for each layer, whatever the number of its runs."""
    vectors: dict[int, dict[int, Tensor]] = {}
    for row, run in enumerate(runs):
        if run.layer is not None and run.vector is not None:
            vectors.setdefault(run.layer, {})[row] = run.vector
    return [
        StateEdit(
            Place("layers_output", layer),
            Reach({row: where[runs[row].prompt.index] for row in added}, onward),
            AddedByRow(torch.stack(list(added.values())), {row: index for index, row in enumerate(added)}),
        )
        for layer, added in vectors.items()
    ]


def with_edits(common: Plan, edits: Sequence[Edit]) -> Plan:
    """A plan with more edits, each after what is done at its place already."""
    whole = {place: [*listed] for place, listed in common.edits.items()}
    for edit in edits:
        whole.setdefault(edit.place, []).append(edit)
    return Plan(whole, common.labels)
