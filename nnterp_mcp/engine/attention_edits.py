"""Edits of attention probabilities: knockouts and patterns, resolved to masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnterp_mcp.engine.edits import Edit, EditOfRuns, Scaled, StateEdit
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.token_spans import Reach, Window
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.structure.attention_span import EVERYTHING, Horizon
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.request.operations import Pattern


@dataclass(frozen=True)
class KnockoutEdit:
    """Removes the attention of queries to keys.

    Attributes:
        place: The layer's attention probabilities.
        queries: The queries.
        keys: The keys whose attention is removed.
        heads: The heads.
        renormalise: Whether the remaining keys of a row are renormalised.
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

    def resolve(self, window: Window, shape: Sequence[int], device: torch.device) -> Data | None:
        """The knockout alone."""
        return KnockedOut(self.place, [], [self]).resolve(window, shape, device)

    def cut(self, window: Window, shape: Sequence[int], device: torch.device) -> Data:
        """Masks of what is cut."""
        _, heads, queries, keys = shape
        return {
            "queries": window.mask(self.queries, queries, device),
            "keys": window.mask(self.keys, keys, device),
            "heads": _marked(self.heads, heads, device),
            "renormalise": self.renormalise,
        }


@dataclass(frozen=True)
class KnockedOut:
    """All that is done to the attention probabilities of a layer in which something is knocked out.

    Attributes:
        place: The layer's attention probabilities.
        others: What else is done there, in the order in which it was listed.
        knockouts: What is cut, behind all the others.
        needs: Earlier hook points that the others read.
    """

    place: Place
    others: Sequence[Edit]
    knockouts: Sequence[KnockoutEdit]
    needs: Sequence[Place] = ()

    def resolve(self, window: Window, shape: Sequence[int], device: torch.device) -> Data | None:
        """All of it as one edit."""
        others = [edit.resolve(window, shape, device) for edit in self.others]
        return {
            "op": "knock_out",
            "others": [edit for edit in others if edit is not None],
            "cuts": [knockout.cut(window, shape, device) for knockout in self.knockouts],
            "readable": self.knockouts[0].horizon.reaches(*_query_and_key(shape, window, device)),
        }


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

    def resolve(self, window: Window, shape: Sequence[int], device: torch.device) -> Data | None:
        """Masks of queries and heads, and the pattern laid over the batch."""
        return {
            "op": "set_pattern",
            "queries": window.mask(self.queries, shape[2], device),
            "heads": _marked(self.heads, shape[1], device),
            "pattern": self._pattern(*_query_and_key(shape, window, device)),
        }

    def _pattern(
        self, query: Int[Tensor, "row query 1"], key: Int[Tensor, "row 1 key"]
    ) -> Float[Tensor, "row query key"]:
        if isinstance(self.pattern, Tensor):
            return _look_up(self.pattern.to(query.device), query, key)
        if self.pattern == "uniform":
            read = self.horizon.reaches(query, key)
            return read / read.sum(-1, keepdim=True).clamp_min(1)
        if self.pattern == "first":
            return (key == self.horizon.first(query)).float()
        before = query - self.horizon.reaches(query, query - 1).long()
        return (key == (before if self.pattern == "previous" else query)).float()


def reads_ahead(edit: Edit) -> bool:
    """True where an edit may let queries read keys behind them, so that early states depend on later tokens."""
    if isinstance(edit, EditOfRuns):
        return reads_ahead(edit.edit)
    if isinstance(edit, KnockedOut):
        return any(reads_ahead(other) for other in edit.others)
    if isinstance(edit, PatternEdit):
        return isinstance(edit.pattern, Tensor) and bool(edit.pattern.triu(1).any())
    if isinstance(edit, KnockoutEdit) or (isinstance(edit, StateEdit) and isinstance(edit.change, Scaled)):
        return False
    return edit.place.site == "attention_probabilities"


def fitting_matrix(pattern: Sequence[Sequence[float]], prompts: Sequence[EncodedPrompt]) -> Float[Tensor, "query key"]:
    """A pattern that a request gives as numbers.

    Raises:
        InvalidRequest: It does not have a row and a column for each token of every prompt.
    """
    widths = {len(row) for row in pattern}
    for prompt in prompts:
        length = len(prompt.ids)
        if len(pattern) != length or widths != {length}:
            raise InvalidRequest(
                f"a pattern of {len(pattern)} rows of {' or '.join(map(str, sorted(widths)))} numbers does not fit "
                f"prompt {prompt.index}, which has {length} tokens: it needs {length} rows of {length}."
            )
    return torch.tensor(pattern)


def _query_and_key(
    shape: Sequence[int], window: Window, device: torch.device
) -> tuple[Int[Tensor, "row query 1"], Int[Tensor, "row 1 key"]]:
    """The positions of queries and keys."""
    query, key = (window.positions(count, device) for count in shape[2:])
    return query[:, :, None], key[:, None, :]


def _look_up(
    matrix: Float[Tensor, "token token"], query: Int[Tensor, "row query 1"], key: Int[Tensor, "row 1 key"]
) -> Float[Tensor, "row query key"]:
    """The matrix laid over a padded batch; zero beyond its edges."""
    inside = (query >= 0) & (query < matrix.shape[0]) & (key >= 0) & (key < matrix.shape[1])
    found = matrix[query.clamp(0, matrix.shape[0] - 1), key.clamp(0, matrix.shape[1] - 1)]
    return torch.where(inside, found, 0)


def _marked(heads: Sequence[int], count: int, device: torch.device) -> Bool[Tensor, " head"]:
    marked = torch.zeros(count, dtype=torch.bool, device=device)
    marked[list(heads)] = True
    return marked
