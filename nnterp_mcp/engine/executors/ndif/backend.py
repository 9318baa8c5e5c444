"""Passes over prompts, packed into few requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.executors.ndif.kernels import Data, pick, pick_averages, pick_lengths, read_next, read_states
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.traces import run_passes
from nnterp_mcp.engine.executors.ndif.wire_format import Way, keep_end, places_at
from nnterp_mcp.engine.forward import Plan
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.next_token import Categories, Readout
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.steering_vectors import States, weigh
from nnterp_mcp.model.text.tokenization import Batch
from nnterp_mcp.request.fields import PositionSpec

T = TypeVar("T")

PASSES = 8
"""Forward passes in one request: few enough that a call can be stopped, and its progress told, in between."""

LOGITS_AT_ONCE = 1 << 26
"""Logits that a pass may form at one time."""


def inputs_of(batch: Batch, last: bool = False) -> Data:
    """What a forward pass over a batch is given.

    Args:
        batch: The batch.
        last: Whether the model need not form logits but at the last column.
    """
    return {**batch.inputs, "use_cache": False} | ({"logits_to_keep": 1} if last else {})


def in_requests(
    model: ServedTransformer, passes: Sequence[Sequence[Data]], on_request: Callable[[int], None]
) -> list[list[Data]]:
    """Runs groups of passes that belong together, several groups in a request.

    Args:
        model: The model.
        passes: The groups; a pass may use what an earlier one of its group, or of the request, carries.
        on_request: Called after each request with the number of groups done; what it raises ends the work.
    """
    found: list[list[Data]] = []
    waiting = list(passes)
    while waiting:
        taken, count = [waiting.pop(0)], 0
        while waiting and sum(map(len, taken)) + len(waiting[0]) <= PASSES:
            taken.append(waiting.pop(0))
        readings = run_passes(model.connection, [one for group in taken for one in group])
        for group in taken:
            found.append(readings[count : count + len(group)])
            count += len(group)
        on_request(len(found))
    return found


def run_served(
    model: ServedTransformer,
    work: Workload,
    make: Callable[[Batch, Sequence[int]], Sequence[Data]],
    split: Callable[[Data, Sequence[int]], Sequence[T]],
    unit: str = "prompts",
) -> list[T]:
    """Runs every prompt once, several batches in a request, and returns what came of each, in the order of the prompts.

    Args:
        model: The model.
        work: The prompts.
        make: Makes the passes of a batch, given the index of each row in the prompts.
        split: Makes a value for each row of what the last pass of a batch read, given the same indices.
        unit: What the prompts are called in the progress.
    """
    groups = work.split(model)
    passes = [make(work.batch(model, numbers), numbers) for numbers in groups]
    done = list(accumulate(map(len, groups)))
    readings = in_requests(model, passes, lambda count: work.progress(done[count - 1], done[-1], unit))
    found: dict[int, T] = {}
    for numbers, (*_, reading) in zip(groups, readings, strict=True):
        found |= zip(numbers, split(reading, numbers), strict=True)
    return [found[number] for number in range(len(work.prompts))]


def split_rows(found: Data, counts: Sequence[int]) -> list[Data]:
    """What a pass read, for each prompt.

    Args:
        found: Tensors whose first dimension are the readings of all prompts.
        counts: How many readings each prompt has.
    """
    columns = {name: values.split(list(counts)) for name, values in found.items()}
    return [{name: values[row] for name, values in columns.items()} for row in range(len(counts))]


@dataclass(frozen=True)
class Asked:
    """What is to be known of the distribution after each of some rows.

    Attributes:
        top_k: How many of the likeliest tokens.
        categories: The tokens to follow, row by row.
    """

    top_k: int
    categories: Categories


def next_pass(
    model: ServedTransformer,
    batch: Batch,
    plan: Plan,
    asked: Asked,
    *,
    lengths: Sequence[int] = (),
    baselines: Sequence[int] = (),
    against: Sequence[int] = (),
) -> Data:
    """A pass that reads what comes after each row of a batch.

    Args:
        model: The model.
        batch: The rows.
        plan: What is in force.
        asked: What is to be known, of these rows.
        lengths: Layers after which the length of each row's last state is wanted.
        baselines: The names by which rows to come know these, where they are their baselines.
        against: The name of each row's baseline.
    """
    window = Window.over(batch)
    ends = places_at(window, [(row, len(prompt.ids) - 1) for row, prompt in enumerate(batch.prompts)])
    way = Way(model)
    way.follow(plan, window)
    rows, columns = ends
    names: list[str] = []
    for layer in lengths:
        names.append(f"length {layer}")
        way.keep(Place("layers_output", layer), names[-1], pick_lengths, {"rows": rows, "columns": columns})
    keep_end(way, ends)
    last = batch.inputs["input_ids"].shape[1] - 1
    at_end = bool((columns == last).all())
    return {
        "inputs": inputs_of(batch, at_end),
        "steps": way.steps(),
        "read": read_next,
        "options": {
            "head": model.head,
            "rows": rows,
            "columns": torch.zeros_like(columns) if at_end else columns,
            "top_k": asked.top_k,
            "ids": asked.categories.ids,
            "real": asked.categories.real,
            "lengths": names,
            "baselines": list(baselines),
            "against": list(against),
        },
    }


def readout_of(found: Data) -> Readout:
    """The readout in what a pass read.

    Raises:
        InvalidRequest: The logits were not finite.
    """
    require_finite(found["entropy"], "logits")
    names = ("top_ids", "top_probs", "entropy", "target_probs", "target_ranks")
    return Readout(**{name: found[name] for name in names})


def logit_rows_at_once(model: ServedTransformer) -> int:
    """How many rows' logits a pass may form."""
    return max(1, LOGITS_AT_ONCE // model.vocab_size)


def states_pass(
    model: ServedTransformer, batch: Batch, places: Sequence[tuple[int, int]], layers: Sequence[int], plan: Plan
) -> tuple[Way, list[str], Data]:
    """The way of a pass that keeps the residual stream after layers, the names that it keeps, and the pass's inputs.

    Args:
        model: The model.
        batch: The rows.
        places: Row and position of each reading.
        layers: The layers, in ascending order.
        plan: What is in force.
    """
    window = Window.over(batch)
    rows, columns = places_at(window, places)
    way = Way(model)
    way.follow(plan, window)
    names: list[str] = []
    for layer in layers:
        names.append(f"layer {layer}")
        way.keep(Place("layers_output", layer), names[-1], pick, {"rows": rows, "columns": columns})
    return way, names, inputs_of(batch, last=True)


def read_served_states(
    model: ServedTransformer, work: Workload, positions: Sequence[Sequence[int]], layers: Sequence[int]
) -> Float[Tensor, "reading layer hidden"]:
    """`activations.read_states` on a served model: the states come here, a vector of the hidden size each."""

    def make(batch: Batch, numbers: Sequence[int]) -> list[Data]:
        places = [(row, at) for row, number in enumerate(numbers) for at in positions[number]]
        way, names, inputs = states_pass(model, batch, places, layers, work.plan)
        return [{"inputs": inputs, "steps": way.steps(), "read": read_states, "options": {"names": names}}]

    def split(found: Data, numbers: Sequence[int]) -> list[Data]:
        return split_rows(found, [len(positions[number]) for number in numbers])

    return torch.cat([one["states"] for one in run_served(model, work, make, split)])


def average_served_states(
    model: ServedTransformer, work: Workload, layers: Sequence[int], positions: Sequence[PositionSpec] = ("last",)
) -> States:
    """`steering_vectors.average_states` on a served model: a mean vector of each prompt and layer comes here."""
    names = [f"layer {layer}" for layer in layers]

    def make(batch: Batch, numbers: Sequence[int]) -> list[Data]:
        way, weights = Way(model), weigh(batch, positions)
        for layer, name in zip(layers, names, strict=True):
            way.keep(Place("layers_output", layer), name, pick_averages, {"weights": weights})
        options = {"names": names}
        return [{"inputs": inputs_of(batch, last=True), "steps": way.steps(), "read": read_states, "options": options}]

    rows = torch.stack(run_served(model, work, make, lambda found, numbers: found["states"]))
    return States(list(layers), rows[..., :-1], rows[..., -1])
