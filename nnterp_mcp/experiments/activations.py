"""States at any site for whole prompt sets, batch by batch, so that nothing of size is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.backend import runs_elsewhere
from nnterp_mcp.engine.forward import Plan, Read, forward
from nnterp_mcp.engine.hook_points import Place, by_position, require_place
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt, pad_batch
from nnterp_mcp.request.fields import PositionSpec
from nnterp_mcp.request.operations import Site

Pool = Literal["none", "mean", "last"]
"""A row for each position, one for their mean, or one for the last of them."""

_IN_STREAM: frozenset[Site] = frozenset(
    {
        "layers_input",
        "layers_output",
        "attentions_raw_output",
        "attentions_output",
        "mlps_raw_output",
        "mlps_output",
    }
)
"""Sites whose states are as wide as the residual stream."""


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


def index_rows(prompts: Sequence[EncodedPrompt], positions: Sequence[PositionSpec], pool: Pool) -> list[Row]:
    """The rows of a collection, in the order of the prompts, then of the positions.

    Args:
        prompts: The prompts.
        positions: The positions in each.
        pool: What becomes of several positions in one prompt.

    Raises:
        InvalidRequest: A position does not exist in a prompt.
    """
    rows: list[Row] = []
    for prompt in prompts:
        chosen = resolve_positions(positions, prompt)
        parts = {"none": [(at,) for at in chosen], "mean": [tuple(chosen)], "last": [(chosen[-1],)]}
        rows += [Row(prompt.index, part) for part in parts[pool]]
    return rows


def state_shape(
    model: StandardizedTransformer, prompts: Sequence[EncodedPrompt], places: Sequence[Place]
) -> tuple[int, ...]:
    """The shape of one token's state, (width,) or (head, width).

    In the residual stream, and of what is added to it, that is the model's width; elsewhere a pass over the shortest
    prompt finds it.

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
    if model.anatomy.streams == 1 and all(place.site in _IN_STREAM for place in places):
        return (model.hidden_size,)
    shortest = min(prompts, key=len_of)
    batch = pad_batch([shortest], model.pad_id, model.device)
    reads = [Read(place, _shape_at(place)) for place in places]
    shapes: list[tuple[int, ...]] = forward(model, batch, reads=reads).reads
    for place, shape in zip(places, shapes, strict=True):
        if shape != shapes[0]:
            raise InvalidRequest(
                f"a state at the {place} has the shape {shape}, one at the {places[0]} {shapes[0]}.",
                "Collect layers of one shape at a time.",
            )
    return shapes[0]


def len_of(prompt: EncodedPrompt) -> int:
    """How many tokens a prompt has."""
    return len(prompt.ids)


def _shape_at(place: Place) -> Callable[[Tensor], tuple[int, ...]]:
    return lambda value: tuple(by_position(value, place.site).shape[2:])


def collect(
    model: StandardizedTransformer, work: Workload, rows: Sequence[Row], places: Sequence[Place]
) -> Iterator[tuple[list[int], Float[Tensor, "row layer *head width"]]]:
    """Reads the states of every row, each prompt in one pass that ends at the last place.

    In many models the first token's state is hundreds of times longer than any other: a mean over all tokens is then
    mostly that state.

    Args:
        model: The model.
        work: The prompts.
        rows: What to read of them.
        places: One site of each layer, with states of one shape.

    Yields:
        The indices of the rows of each batch, with their states in float32, on the CPU. Batches hold prompts of
        similar length.

    Raises:
        OutOfMemory: One prompt alone does not fit.
        InvalidRequest: A state is not finite.
    """
    own: dict[int, list[int]] = {prompt.index: [] for prompt in work.prompts}
    for number, row in enumerate(rows):
        own[row.prompt].append(number)

    def read(batch: Batch, prompts: Sequence[int]) -> tuple[list[int], Float[Tensor, "row layer *head width"]]:
        mean = _mean_over(batch, [[rows[number] for number in own[prompt.index]] for prompt in batch.prompts])
        reads = [Read(place, lambda value, place=place: mean(by_position(value, place.site))) for place in places]
        states = torch.stack([taken.cpu() for taken in forward(model, batch, work.plan, reads).reads], dim=1)
        require_finite(states, "states")
        return [number for prompt in batch.prompts for number in own[prompt.index]], states

    for _, found in work.run_batches(model, read):
        yield found


@runs_elsewhere
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
        return take_states(model, batch, asked, layers, work.plan).split([len(at) for at in asked])

    return torch.cat(work.run(model, read))


def take_states(
    model: StandardizedTransformer,
    batch: Batch,
    positions: Sequence[Sequence[int]],
    layers: Sequence[int],
    plan: Plan,
) -> Float[Tensor, "reading layer hidden"]:
    """Reads the residual stream after layers in one batch, row by row.

    Args:
        model: The model.
        batch: The prompts.
        positions: For each row, the positions to read in the unpadded prompt.
        layers: The layers to read, in ascending order.
        plan: The operations on the prompts.
    """
    wanted = [(row, batch.padding[row] + at) for row, here in enumerate(positions) for at in here]
    rows, columns = torch.tensor(wanted, dtype=torch.long, device=model.device).reshape(-1, 2).T
    reads = [
        Read(Place("layers_output", layer), lambda state: state[rows, columns].to(rows.device)) for layer in layers
    ]
    return torch.stack(forward(model, batch, plan, reads).reads, dim=1)


def _mean_over(batch: Batch, asked: Sequence[Sequence[Row]]) -> Callable[[Tensor], Tensor]:
    """Takes the rows of each prompt of a batch from states (batch, position, ...)."""
    wanted = [(line, row) for line, of_prompt in enumerate(asked) for row in of_prompt]
    entries = [
        (number, line, batch.padding[line] + at) for number, (line, row) in enumerate(wanted) for at in row.positions
    ]
    owners, lines, columns = torch.tensor(entries, dtype=torch.long).T
    counts = torch.tensor([len(row.positions) for _, row in wanted])

    def mean(states: Float[Tensor, "batch position *head width"]) -> Float[Tensor, "row *head width"]:
        device = states.device
        taken = states[lines.to(device), columns.to(device)].float()
        if len(taken) == len(counts):
            return taken
        total = taken.new_zeros((len(counts), *taken.shape[1:])).index_add_(0, owners.to(device), taken)
        return total / counts.to(device).reshape(-1, *[1] * (taken.ndim - 1))

    return mean
