"""States at any site for whole prompt sets, batch by batch, so that they need not fit in memory together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.forward import Capture, forward
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.readouts.reductions import average_rows, take_norms, take_rows
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.positions import resolve_averaged, resolve_positions
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt, pad_batch
from nnterp_mcp.request.positions import PositionSpec
from nnterp_mcp.request.sites import FACTS

RowPooling = Literal["none", "mean", "last"]
"""A row for each position, one for their mean, or one for the last of them."""


@dataclass(frozen=True)
class Row:
    """One row of a collection: the mean state over some tokens of a prompt, most often over one.

    Attributes:
        prompt: The prompt's index.
        positions: The tokens, in ascending order.
    """

    prompt: int
    positions: tuple[int, ...]

    @property
    def position(self) -> int | None:
        """The token; None for a mean over several."""
        return self.positions[0] if len(self.positions) == 1 else None


@dataclass(frozen=True)
class CollectedStates:
    """The states of some rows of a collection; on the CPU, in float32.

    Attributes:
        rows: The indices of the rows.
        states: Their states.
        norms: For each row the norms of the states that it is the mean of, heads concatenated.
    """

    rows: list[int]
    states: Float[Tensor, "row layer *head width"]
    norms: list[Float[Tensor, "position layer"]]


def index_rows(
    prompts: Sequence[EncodedPrompt], positions: Sequence[PositionSpec], pool: RowPooling, *, averaged: bool = False
) -> list[Row]:
    """The rows of a collection, in the order of the prompts, then of the positions.

    Args:
        prompts: The prompts.
        positions: The positions in each.
        pool: How several positions of a prompt are combined.
        averaged: The rows themselves are averaged later, so that `all` leaves out the first token as in a mean.

    Raises:
        InvalidRequest: A position does not exist in a prompt.
    """
    rows: list[Row] = []
    resolve = resolve_averaged if averaged or pool == "mean" else resolve_positions
    for prompt in prompts:
        chosen = resolve(positions, prompt)
        parts = {"none": [(at,) for at in chosen], "mean": [tuple(chosen)], "last": [(chosen[-1],)]}
        rows += [Row(prompt.index, part) for part in parts[pool]]
    return rows


def state_shape(
    model: StandardizedTransformer, prompts: Sequence[EncodedPrompt], places: Sequence[Place]
) -> tuple[int, ...]:
    """The shape of one token's state, (width,) or (head, width).

    The model's width in the residual stream and for sublayer outputs; a pass over the shortest prompt finds that of
    other sites.

    Args:
        model: The model.
        prompts: The prompts.
        places: Where states are to be read.

    Raises:
        InvalidRequest: The places have states of different shapes.
        Unsupported: The model does not have one of the places, or states there are no vectors of one width.
    """
    for place in places:
        if place.site == "attention_probabilities":
            raise Unsupported("attention patterns are as wide as their prompt is long: attention_probs keeps them.")
        require_place(model, place)
    if model.anatomy.streams == 1 and all(FACTS[place.site].in_stream for place in places):
        return (model.hidden_size,)
    shortest = min(prompts, key=len_of)
    batch = pad_batch([shortest], model.pad_id, model.device)
    first = torch.zeros(1, dtype=torch.long)
    captures = [Capture(place, take_rows, {"rows": first, "columns": first}) for place in places]
    shapes = [tuple(states.shape[1:]) for states in forward(model, batch, captures=captures).values]
    for place, shape in zip(places, shapes, strict=True):
        if shape != shapes[0]:
            raise InvalidRequest(
                f"a state at the {place} has the shape {shape}, one at the {places[0]} {shapes[0]}.",
                "Collect layers of one shape at a time.",
            )
    return shapes[0]


def len_of(prompt: EncodedPrompt) -> int:
    """The number of tokens of a prompt."""
    return len(prompt.ids)


def collect(
    model: StandardizedTransformer, work: Workload, rows: Sequence[Row], places: Sequence[Place]
) -> Iterator[CollectedStates]:
    """Reads the states of every row, each prompt in one pass that ends at the last place.

    Args:
        model: The model.
        work: The prompts.
        rows: The rows to read.
        places: One site of each layer, with states of one shape.

    Yields:
        The rows of each batch. Batches hold prompts of similar length.

    Raises:
        OutOfMemory: One prompt alone does not fit.
        InvalidRequest: A state is not finite.
    """
    own: dict[int, list[int]] = {prompt.index: [] for prompt in work.prompts}
    for number, row in enumerate(rows):
        own[row.prompt].append(number)

    def read(batch: Batch, prompts: Sequence[int]) -> CollectedStates:
        options = _means_over(batch, [[rows[number] for number in own[prompt.index]] for prompt in batch.prompts])
        captures = [Capture(place, reduction, options) for reduction in (average_rows, take_norms) for place in places]
        found = [taken.cpu() for taken in forward(model, batch, work.plan, captures).values]
        states, norms = (torch.stack(part, dim=1) for part in (found[: len(places)], found[len(places) :]))
        require_finite(states, "states")
        numbers = [number for prompt in batch.prompts for number in own[prompt.index]]
        return CollectedStates(numbers, states, list(norms.split([len(rows[number].positions) for number in numbers])))

    for _, found in work.run_batches(model, read):
        yield found


def read_states(
    model: StandardizedTransformer, work: Workload, positions: Sequence[Sequence[int]], layers: Sequence[int]
) -> Float[Tensor, "reading layer hidden"]:
    """Reads the residual stream after layers, in passes that end at the last of them.

    Args:
        model: The model.
        work: The prompts.
        positions: For each prompt, the positions to read in the unpadded prompt.
        layers: The layers to read, in ascending order.

    Returns:
        The states on the model's device, in its dtype, in the order of the prompts and their positions.
    """

    def read(batch: Batch, numbers: Sequence[int]) -> Sequence[Float[Tensor, "reading layer hidden"]]:
        asked = [positions[number] for number in numbers]
        found = forward(model, batch, work.plan, capture_stream(batch, asked, layers)).values
        states = torch.stack([states.to(model.device) for states in found], dim=1)
        return states.split([len(at) for at in asked])

    return torch.cat(work.run(model, read))


def capture_stream(batch: Batch, positions: Sequence[Sequence[int]], layers: Sequence[int]) -> list[Capture]:
    """Captures of the residual stream after layers, row by row.

    Args:
        batch: The prompts.
        positions: For each row, the positions to read in the unpadded prompt.
        layers: The layers.
    """
    wanted = [(row, batch.padding[row] + at) for row, here in enumerate(positions) for at in here]
    # On the model's device from the start: each layer would otherwise wait for a copy of its own.
    rows, columns = torch.tensor(wanted, dtype=torch.long, device=batch.inputs["input_ids"].device).reshape(-1, 2).T
    options = {"rows": rows, "columns": columns}
    return [Capture(Place("layers_output", layer), take_rows, options) for layer in layers]


def _means_over(batch: Batch, asked: Sequence[Sequence[Row]]) -> dict[str, Tensor]:
    """The entries of a batch over which each row of a collection is a mean; the options of `average_rows`."""
    wanted = [(line, row) for line, of_prompt in enumerate(asked) for row in of_prompt]
    entries = [
        (number, line, batch.padding[line] + at) for number, (line, row) in enumerate(wanted) for at in row.positions
    ]
    owners, lines, columns = torch.tensor(entries, dtype=torch.long).T
    counts = torch.tensor([len(row.positions) for _, row in wanted])
    return {"owners": owners, "rows": lines, "columns": columns, "counts": counts}
