"""Edits of activations, resolved into plain data for one batch once everything that they refer to is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.constants import indices, on_device
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.token_spans import Reach, Selection, Window
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.request.operations import IndexSpec
from nnterp_mcp.request.selectors import resolve_indices
from nnterp_mcp.request.sites import FACTS


class Edit(Protocol):
    """A change of the states at one hook point."""

    @property
    def place(self) -> Place:
        """Where it acts."""
        ...

    @property
    def needs(self) -> Sequence[Place]:
        """Earlier hook points of the same pass that it reads."""
        ...

    def resolve(self, window: Window, shape: Sequence[int], device: torch.device) -> Data | None:
        """The edit of one pass as data for the interpreter; None where it reaches nothing there.

        Args:
            window: The columns that the pass computes.
            shape: The shape of the states, in the model's own layout.
            device: Where they are.

        Raises:
            InvalidRequest: A vector or a neuron does not fit the states.
        """
        ...


_PARALLEL = 0.999
"""The cosine of two vectors above which a swap of their coordinates would only amplify noise."""


@dataclass(frozen=True)
class Reached:
    """The states that an edit reaches in one pass.

    Attributes:
        chosen: Where they are.
        window: The columns that the pass computes.
        shape: The shape of all states, (row, position, *head, width).
        device: Where they are.
    """

    chosen: Selection
    window: Window
    shape: Sequence[int]
    device: torch.device


class Change(Protocol):
    """Determines what the states that an edit reaches become."""

    def resolve(self, states: Reached) -> Data:
        """The `op` of the interpreter, with what it needs."""
        ...


@dataclass(frozen=True)
class EditOfRuns:
    """An edit that was planned for prompts, in passes whose rows are runs of them.

    Attributes:
        edit: The edit.
        owners: The prompt of each run.
    """

    edit: Edit
    owners: Sequence[EncodedPrompt]

    @property
    def place(self) -> Place:
        """Where it acts."""
        return self.edit.place

    @property
    def needs(self) -> Sequence[Place]:
        """Earlier hook points of the same pass that it reads."""
        return self.edit.needs

    def resolve(self, window: Window, shape: Sequence[int], device: torch.device) -> Data | None:
        """The edit in every run of the prompts that it reaches."""
        return self.edit.resolve(window.of_owners(self.owners), shape, device)


@dataclass(frozen=True)
class StateEdit:
    """A change of states at some positions, of some heads, in some components.

    Attributes:
        place: Where it acts.
        reach: The positions.
        change: What becomes of the states.
        heads: The heads; None for all.
        neurons: The components as they were asked for, since some widths show only in a pass; None for all.
        needs: Earlier hook points that the change reads.
    """

    place: Place
    reach: Reach
    change: Change
    heads: Sequence[int] | None = None
    neurons: IndexSpec | None = None
    needs: Sequence[Place] = ()

    def resolve(self, window: Window, shape: Sequence[int], device: torch.device) -> Data | None:
        """The edit of one pass."""
        heads_first = FACTS[self.place.site].heads_first
        shape = [shape[0], shape[2], shape[1], *shape[3:]] if heads_first else shape
        chosen = window.select(self.reach, shape[1])
        if not chosen.entries:
            return None
        neurons = None
        if self.neurons is not None:
            neurons = resolve_indices(self.neurons, shape[-1], "neuron", f"a state at {self.place}")
        rows, columns = chosen.on(device)
        return {
            "rows": rows,
            "columns": columns,
            "heads": None if self.heads is None else indices(self.heads, device),
            "neurons": None if neurons is None else indices(neurons, device),
            "heads_first": heads_first,
            **self.change.resolve(Reached(chosen, window, shape, device)),
        }


@dataclass(frozen=True)
class Added:
    """The states plus a vector."""

    vector: Float[Tensor, " width"]
    label: str
    place: Place

    def resolve(self, states: Reached) -> Data:
        """The vector."""
        require_width(self.vector, states.shape[-1], self.label, self.place)
        return {"op": "add", "value": on_device(self.vector, states.device)}


@dataclass(frozen=True)
class Scaled:
    """The states times a factor."""

    factor: float

    def resolve(self, states: Reached) -> Data:
        """The factor."""
        return {"op": "scale", "value": self.factor}


@dataclass(frozen=True)
class Averaged:
    """A mean in the states' place."""

    mean: Float[Tensor, "*head width"]
    heads: Sequence[int] | None = None

    def resolve(self, states: Reached) -> Data:
        """The mean, of the heads that are replaced."""
        mean = on_device(self.mean, states.device)
        return {"op": "replace", "value": mean if self.heads is None else mean[indices(self.heads, states.device)]}


@dataclass(frozen=True)
class Patched:
    """States of another run in the states' place.

    Attributes:
        states: Those for each prompt.
        index: Which of them goes to each position of each prompt.
        heads: The heads that are patched; None for all.
    """

    states: Mapping[int, Float[Tensor, "state *head width"]]
    index: Mapping[tuple[int, int], int]
    heads: Sequence[int] | None = None

    def resolve(self, states: Reached) -> Data:
        """The other states, entry by entry."""
        taken = torch.stack([self.states[prompt][self.index[prompt, at]] for prompt, at in states.chosen.entries])
        return {"op": "replace", "value": taken if self.heads is None else taken[:, list(self.heads)]}


@dataclass(frozen=True)
class Projected:
    """The states without their component along a vector or in a subspace, or with that of other states in its place.

    Attributes:
        vector: The vector, or orthonormal rows.
        label: Its name in errors.
        place: Where it is used.
        mean: The other states.
    """

    vector: Float[Tensor, "*dimension width"]
    label: str
    place: Place
    mean: Patched | None = None

    def resolve(self, states: Reached) -> Data:
        """The vector, and the states whose component along it is taken."""
        require_width(self.vector, states.shape[-1], self.label, self.place)
        component = None if self.mean is None else self.mean.resolve(states)["value"]
        return {"op": "project_out", "value": on_device(self.vector, states.device), "component_of": component}


@dataclass(frozen=True)
class Swapped:
    """The states with their coordinates along two vectors exchanged.

    Attributes:
        read: The direction whose product with a state is how far the two coordinates differ.
        written: What one unit of that adds.
        label: Both vectors, as errors name them.
        place: Where they are used.
    """

    read: Float[Tensor, " width"]
    written: Float[Tensor, " width"]
    label: str
    place: Place

    @classmethod
    def along(cls, pair: Sequence[Float[Tensor, " width"]], factor: float, label: str, place: Place) -> Swapped:
        """The exchange of the coordinates along two vectors, times a factor.

        Raises:
            InvalidRequest: The vectors have one direction, or one of them none.
        """
        one, other = (vector.double() for vector in pair)
        cosine = float(torch.nn.functional.cosine_similarity(one, other, dim=0).abs())
        if not (bool(one.any()) and bool(other.any())) or cosine > _PARALLEL:
            raise InvalidRequest(
                f"{label} have a cosine of {cosine:.4f} at the {place}, so that no coordinates along both can be told "
                "apart."
            )
        coordinates = torch.linalg.pinv(torch.stack([one, other], dim=1))
        read = factor * (coordinates[1] - coordinates[0])
        return cls(read.float(), (one - other).float(), label, place)

    def resolve(self, states: Reached) -> Data:
        """Both directions."""
        require_width(self.read, states.shape[-1], self.label, self.place)
        return {"op": "swap", "value": on_device(torch.stack([self.read, self.written]), states.device)}


@dataclass(frozen=True)
class PatchedPatterns:
    """Attention of another run in attention's place: what each query reads from each key of its prompt.

    Attributes:
        patterns: Each prompt's, for the queries that are patched, in ascending order.
        index: Which of them goes to each position of each prompt.
        heads: The heads that are patched; None for all.
    """

    patterns: Mapping[int, Float[Tensor, "query head key"]]
    index: Mapping[tuple[int, int], int]
    heads: Sequence[int] | None = None

    def resolve(self, states: Reached) -> Data:
        """The other attention, on the prompt's own columns."""
        window, (_, _, heads, keys) = states.window, states.shape
        heads = heads if self.heads is None else len(self.heads)
        new = torch.zeros(len(states.chosen.entries), heads, keys, device=states.device)
        padding = {prompt.index: before for prompt, before in zip(window.prompts, window.padding, strict=True)}
        begin = window.length - keys
        for entry, (prompt, position) in enumerate(states.chosen.entries):
            pattern = self.patterns[prompt][self.index[prompt, position]]
            pattern = pattern if self.heads is None else pattern[list(self.heads)]
            start = padding[prompt] - begin
            new[entry, :, start : start + pattern.shape[-1]] = pattern.to(new)
        return {"op": "replace", "value": new}


Rewrite = Callable[[Float[Tensor, "entry *head width"], Sequence[Tensor]], Float[Tensor, "entry *head width"]]
"""From the states that an edit reaches, and those of earlier hook points at the same tokens, to what they become."""


@dataclass(frozen=True)
class Rewritten:
    """The states as a function makes them.

    Attributes:
        rewrite: The function.
        reads: The earlier hook points that it reads.
    """

    rewrite: Rewrite
    reads: Sequence[Place] = ()

    def resolve(self, states: Reached) -> Data:
        """The function, with the entries that it reads."""
        rows, columns = states.chosen.on(states.device)
        return {
            "op": "rewrite",
            "rewrite": self.rewrite,
            "reads": [str(place) for place in self.reads],
            "index": None if rows is None else (rows, columns),
        }


@dataclass(frozen=True)
class PassedOn:
    """Replaces a layer's output with its input."""

    entrance: Place

    def resolve(self, states: Reached) -> Data:
        """The same rows and columns of what came in."""
        rows, columns = states.chosen.on(states.device)
        return {"op": "take", "name": str(self.entrance), "index": None if rows is None else (rows, columns)}


def is_skipped(listed: Sequence[Edit], window: Window) -> bool:
    """Returns True where the first edit of a layer's output replaces all of it with the layer's input.

    Args:
        listed: The edits of the layer's output, in their order.
        window: The columns that the pass computes.
    """
    first = listed[0] if listed else None
    if isinstance(first, EditOfRuns):
        return is_skipped([first.edit], window.of_owners(first.owners))
    if not isinstance(first, StateEdit) or not isinstance(first.change, PassedOn):
        return False
    return window.select(first.reach, window.length - window.first).whole


def require_width(vector: Tensor, width: int, label: str, place: Place) -> None:
    """Refuses a vector that does not fit the states.

    Raises:
        InvalidRequest: Its width is another one.
    """
    if vector.shape[-1:] != (width,):
        raise InvalidRequest(f"{label} has {vector.shape[-1]} numbers, and a state at {place} has {width}.")
