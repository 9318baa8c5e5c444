"""What operations do to tensors, once everything that they refer to is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnterp_mcp.engine.constants import indices, like
from nnterp_mcp.engine.hook_points import Place, by_position
from nnterp_mcp.engine.token_spans import Reach, Selection, Window
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.structure.attention_span import EVERYTHING, Horizon
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.request.operations import IndexSpec, Pattern
from nnterp_mcp.request.selectors import resolve_indices

Seen = dict[Place, Tensor]
"""What a pass keeps for edits further on: by place, (batch, position, …)."""


class Edit(Protocol):
    """A change of what is at one place."""

    @property
    def place(self) -> Place:
        """Where it acts."""
        ...

    @property
    def needs(self) -> Sequence[Place]:
        """Earlier places of the same pass that it reads."""
        ...

    def apply(self, value: Tensor, window: Window, seen: Seen) -> Tensor:
        """The value with the change made; the tensor that came stays as it is."""
        ...


class Change(Protocol):
    """What becomes of the states that an edit reaches."""

    def __call__(
        self, states: Float[Tensor, "entry *head width"], chosen: Selection, window: Window, seen: Seen
    ) -> Tensor:
        """The new states."""
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
        """Earlier places of the same pass that it reads."""
        return self.edit.needs

    def apply(self, value: Tensor, window: Window, seen: Seen) -> Tensor:
        """The value with the change made in every run of the prompts that it reaches."""
        return self.edit.apply(value, window.of_owners(self.owners), seen)


@dataclass(frozen=True)
class StateEdit:
    """A change of states at some positions, of some heads, in some components.

    Attributes:
        place: Where it acts.
        reach: The positions.
        change: What becomes of the states.
        heads: The heads; None for all.
        neurons: The components as they were asked for, since some widths show only in a pass; None for all.
        needs: Earlier places that the change reads.
    """

    place: Place
    reach: Reach
    change: Change
    heads: Sequence[int] | None = None
    neurons: IndexSpec | None = None
    needs: Sequence[Place] = ()

    def apply(self, value: Tensor, window: Window, seen: Seen) -> Tensor:
        """The states with the change made."""
        states = by_position(value, self.place.site)
        chosen = window.select(self.reach, states.shape[1])
        if not chosen.entries:
            return value
        picked = chosen.pick(states)
        part = picked if self.heads is None else picked[:, indices(self.heads, picked.device)]
        changed = self.change(part, chosen, window, seen).to(part)
        if self.neurons is not None:
            named = resolve_indices(self.neurons, part.shape[-1], "neuron", f"a state at {self.place}")
            components = indices(named, part.device)
            changed = part.index_copy(-1, components, changed[..., components])
        if self.heads is not None:
            changed = picked.index_copy(1, indices(self.heads, picked.device), changed)
        return by_position(chosen.put(states, changed), self.place.site)


@dataclass(frozen=True)
class Added:
    """The states plus a vector."""

    vector: Float[Tensor, " width"]
    label: str
    place: Place

    def __call__(self, states: Tensor, chosen: Selection, window: Window, seen: Seen) -> Tensor:
        """The new states."""
        require_width(self.vector, states.shape[-1], self.label, self.place)
        return states + like(self.vector, states)


@dataclass(frozen=True)
class AddedByEntry:
    """The states plus vectors that differ by prompt or position.

    Attributes:
        vectors: The vectors.
        choose: Given the prompt's index and the position, returns which vector is added.
    """

    vectors: Float[Tensor, "vector width"]
    choose: Callable[[int, int], int]

    def __call__(self, states: Tensor, chosen: Selection, window: Window, seen: Seen) -> Tensor:
        """The new states."""
        which = indices([self.choose(*entry) for entry in chosen.entries], states.device)
        return states + like(self.vectors, states)[which]


@dataclass(frozen=True)
class Scaled:
    """The states times a factor."""

    factor: float

    def __call__(self, states: Tensor, chosen: Selection, window: Window, seen: Seen) -> Tensor:
        """The new states."""
        return states * self.factor if self.factor else torch.zeros_like(states)


@dataclass(frozen=True)
class Projected:
    """The states without their component along a vector."""

    vector: Float[Tensor, " width"]
    label: str
    place: Place

    def __call__(self, states: Tensor, chosen: Selection, window: Window, seen: Seen) -> Tensor:
        """The new states."""
        require_width(self.vector, states.shape[-1], self.label, self.place)
        exact = states.float()
        direction = torch.nn.functional.normalize(like(self.vector, exact), dim=0)
        return states - ((exact @ direction)[..., None] * direction).to(states)


@dataclass(frozen=True)
class Averaged:
    """A mean in the states' place."""

    mean: Float[Tensor, "*head width"]
    heads: Sequence[int] | None = None

    def __call__(self, states: Tensor, chosen: Selection, window: Window, seen: Seen) -> Tensor:
        """The new states."""
        mean = like(self.mean, states)
        mean = mean if self.heads is None else mean[indices(self.heads, mean.device)]
        return mean.expand_as(states)


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

    def __call__(self, states: Tensor, chosen: Selection, window: Window, seen: Seen) -> Tensor:
        """The new states."""
        taken = torch.stack([self.states[prompt][self.index[prompt, at]] for prompt, at in chosen.entries])
        taken = taken if self.heads is None else taken[:, list(self.heads)]
        return taken.to(states)


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

    def __call__(self, states: Tensor, chosen: Selection, window: Window, seen: Seen) -> Tensor:
        """The new attention, on the prompt's own columns."""
        new = torch.zeros_like(states)
        padding = {prompt.index: before for prompt, before in zip(window.prompts, window.padding, strict=True)}
        begin = window.length - states.shape[-1]
        for entry, (prompt, position) in enumerate(chosen.entries):
            pattern = self.patterns[prompt][self.index[prompt, position]]
            pattern = pattern if self.heads is None else pattern[list(self.heads)]
            start = padding[prompt] - begin
            new[entry, :, start : start + pattern.shape[-1]] = pattern.to(states)
        return new


@dataclass(frozen=True)
class PassedOn:
    """What came into the layer in the place of what it made."""

    entrance: Place

    def __call__(self, states: Tensor, chosen: Selection, window: Window, seen: Seen) -> Tensor:
        """The new states."""
        return chosen.pick(seen[self.entrance].to(states.device))


def require_width(vector: Tensor, width: int, label: str, place: Place) -> None:
    """Refuses a vector that does not fit the states.

    Raises:
        InvalidRequest: Its width is another one.
    """
    if vector.shape != (width,):
        raise InvalidRequest(f"{label} has {vector.shape[-1]} numbers, and a state at {place} has {width}.")


@dataclass(frozen=True)
class KnockoutEdit:
    """What queries read from keys, cut.

    Attributes:
        place: The layer's attention probabilities.
        queries: The queries.
        keys: The keys that they do not read any more.
        heads: The heads.
        renormalise: Whether the other keys share what was cut.
        horizon: What the layer lets a query read.
        needs: Nothing.
    """

    place: Place
    queries: Reach
    keys: Reach
    heads: Sequence[int]
    renormalise: bool
    horizon: Horizon = EVERYTHING
    needs: Sequence[Place] = ()

    def apply(
        self, value: Float[Tensor, "batch head query key"], window: Window, seen: Seen
    ) -> Float[Tensor, "batch head query key"]:
        """The attention probabilities without what was cut."""
        return KnockedOut(self.place, [], [self]).apply(value, window, seen)

    def mask(
        self, value: Float[Tensor, "batch head query key"], window: Window
    ) -> Bool[Tensor, "batch head query key"]:
        """What is cut."""
        queries = window.mask(self.queries, value.shape[2], value.device)
        keys = window.mask(self.keys, value.shape[3], value.device)
        return queries[:, None, :, None] & keys[:, None, None, :] & _marked(self.heads, value)


@dataclass(frozen=True)
class KnockedOut:
    """All that is done to the attention probabilities of a layer in which something is knocked out.

    A knockout masks scores, whatever else is done to the probabilities: in whichever order they are listed, what is cut
    stays cut, and rows sum to what a mask leaves. It comes last; what takes no renormalising comes after what does.

    Attributes:
        place: The layer's attention probabilities.
        others: What else is done there, in the order in which it was listed.
        knockouts: What is cut.
        needs: Earlier places that the others read.
    """

    place: Place
    others: Sequence[Edit]
    knockouts: Sequence[KnockoutEdit]
    needs: Sequence[Place] = ()

    def apply(
        self, value: Float[Tensor, "batch head query key"], window: Window, seen: Seen
    ) -> Float[Tensor, "batch head query key"]:
        """The attention probabilities, edited and then cut."""
        edited = value
        for edit in self.others:
            edited = edit.apply(edited, window, seen)
        masked, removed = torch.zeros(2, *value.shape, dtype=torch.bool, device=value.device)
        for knockout in self.knockouts:
            (masked if knockout.renormalise else removed).logical_or_(knockout.mask(value, window))
        readable = self.knockouts[0].horizon.reaches(*_query_and_key(value, window))[:, None]
        touched = (masked & (readable | (edited != 0))).any(-1, keepdim=True)
        return torch.where(touched, _mask_scores(value, edited, masked), edited).masked_fill(removed, 0)


def _mask_scores(
    own: Float[Tensor, "*rows key"], edited: Float[Tensor, "*rows key"], masked: Bool[Tensor, "*rows key"]
) -> Float[Tensor, "*rows key"]:
    """What masking scores would have left of edited rows; a row of which nothing is left reads nothing.

    Where the model's own row sums to less than one a sink takes the rest, and takes its part of what was cut.
    """
    rounding = max(1e-5, 2 * torch.finfo(own.dtype).eps)
    total = own.float().sum(-1, keepdim=True)
    sink = torch.where(total < 1 - rounding, 1 - total, 0)
    left = own.float().masked_fill(masked, 0).sum(-1, keepdim=True)
    kept = edited.float().masked_fill(masked, 0)
    whole, tiny = kept.sum(-1, keepdim=True), torch.finfo(torch.float32).tiny
    share = 1 - sink / torch.where(sink + left > 0, sink + left, 1)
    return (kept * (share / torch.where(whole.abs() > tiny, whole, torch.inf))).to(edited)


@dataclass(frozen=True)
class PatternEdit:
    """Attention probabilities set to a pattern.

    Attributes:
        place: The layer's attention probabilities.
        queries: The queries.
        heads: The heads.
        pattern: What each query reads; a matrix is over the prompt's tokens.
        horizon: What the layer lets a query read.
        needs: Nothing.
    """

    place: Place
    queries: Reach
    heads: Sequence[int]
    pattern: Pattern | Float[Tensor, "query key"]
    horizon: Horizon = EVERYTHING
    needs: Sequence[Place] = ()

    def apply(
        self, value: Float[Tensor, "batch head query key"], window: Window, seen: Seen
    ) -> Float[Tensor, "batch head query key"]:
        """The attention probabilities with the pattern set."""
        queries = window.mask(self.queries, value.shape[2], value.device)
        chosen = queries[:, None, :, None] & _marked(self.heads, value)
        return torch.where(chosen, self._pattern(value, window)[:, None].to(value), value)

    def _pattern(self, value: Tensor, window: Window) -> Float[Tensor, "batch query key"]:
        query, key = _query_and_key(value, window)
        if isinstance(self.pattern, Tensor):
            return _look_up(self.pattern.to(value.device), query, key)
        if self.pattern == "uniform":
            read = self.horizon.reaches(query, key)
            return read / read.sum(-1, keepdim=True).clamp_min(1)
        if self.pattern == "first":
            return (key == self.horizon.first(query)).float()
        before = query - self.horizon.reaches(query, query - 1).long()
        return (key == (before if self.pattern == "previous" else query)).float()


def _query_and_key(
    value: Float[Tensor, "batch head query key"], window: Window
) -> tuple[Int[Tensor, "batch query 1"], Int[Tensor, "batch 1 key"]]:
    """The positions of queries and keys."""
    query, key = (window.positions(count, value.device) for count in value.shape[2:])
    return query[:, :, None], key[:, None, :]


def _look_up(
    matrix: Float[Tensor, "query key"], query: Int[Tensor, "batch query 1"], key: Int[Tensor, "batch 1 key"]
) -> Float[Tensor, "batch query key"]:
    """The matrix laid over a padded batch; zero beyond its edges."""
    inside = (query >= 0) & (query < matrix.shape[0]) & (key >= 0) & (key < matrix.shape[1])
    found = matrix[query.clamp(0, matrix.shape[0] - 1), key.clamp(0, matrix.shape[1] - 1)]
    return torch.where(inside, found, 0)


def _marked(heads: Sequence[int], value: Tensor) -> Tensor:
    marked = torch.zeros(value.shape[1], dtype=torch.bool, device=value.device)
    marked[list(heads)] = True
    return marked[None, :, None, None]
