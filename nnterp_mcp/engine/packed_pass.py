"""Texts end to end in one row of a pass, each reading itself alone, and continuations that join the row between layers.

A pass over a few tokens takes about as long as it takes to read the weights. So where states of some texts replace one
of another text, a single pass runs all of them: a continuation joins after the layer at which its state is replaced,
as a copy of the text that it continues.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate, count
from math import isqrt
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from nnsight.util import apply
from torch import Tensor, nn

from nnterp_mcp.engine.executors.execution import execute
from nnterp_mcp.engine.hook_points import Place, in_order
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.anatomy import Inputs

_SMALLEST_WIDTH = 97
"""More than the heads that a model whose attention takes a mask has, where their number is a prime."""


class Token(NamedTuple):
    """A token of a packed text.

    Attributes:
        text: The number of the text.
        position: The position in it.
    """

    text: int
    position: int


class PatchedText(NamedTuple):
    """The last text with one state replaced.

    Attributes:
        token: The number of the token whose state it is.
        source_layer: The layer after which that token's state is read, at most `layer`.
        layer: The layer after which it replaces the text's own.
    """

    token: int
    source_layer: int
    layer: int


class PackedPass:
    """Visits the layers of a packed pass: reads states, and lets continuations join.

    Args:
        texts: The tokens of each text; the last one is that which is continued.
        position: The position of the last text at which states are replaced.
        tokens: The tokens whose states are read.
        layers: The layers after which they are read.
        continuations: The continuations of the last text.
        last: The last layer that runs; its output has as many columns as the model's inputs again.

    Attributes:
        places: The hook points, in the order in which the model comes to them.
        states: The states of the tokens after each layer that was read.
        tail: The number of columns of a continuation: the replaced token and those behind it.
        columns: The number of columns when all continuations have joined.
        whole: The number of columns of the model's inputs: one that none of its other dimensions has.
    """

    skipped: Collection[int] = ()

    def __init__(
        self,
        texts: Sequence[Sequence[int]],
        position: int,
        tokens: Sequence[Token],
        layers: Sequence[int],
        continuations: Sequence[PatchedText],
        last: int,
    ) -> None:
        self.texts = texts
        self.position = position
        self.states: dict[int, Float[Tensor, "token hidden"]] = {}
        touched = {*layers, *(one.layer for one in continuations), last}
        self.places = in_order(Place("layers_output", layer) for layer in touched)
        self._ends = list(accumulate(map(len, texts)))
        self._columns = torch.tensor([self._ends[text] - len(texts[text]) + at for text, at in tokens])
        self._layers = frozenset(layers)
        self._last = last
        self._order = sorted(range(len(continuations)), key=lambda row: continuations[row].layer)
        self.continuations = continuations
        self.tail = len(texts[-1]) - position
        self.columns = self._ends[-1] + self.tail * len(continuations)
        self.whole = _next_prime(max(_SMALLEST_WIDTH, self.columns))

    @property
    def outcomes(self) -> list[int]:
        """The last column of the text that is continued, then that of each continuation in their order."""
        at = {row: self._ends[-1] + (1 + turn) * self.tail - 1 for turn, row in enumerate(self._order)}
        return [self._ends[-1] - 1, *(at[row] for row in range(len(at)))]

    def width(self, layer: int) -> int:
        """The number of columns that enter a layer."""
        return self._ends[-1] + self.tail * sum(one.layer < layer for one in self.continuations)

    def inputs(self, model: StandardizedTransformer) -> dict[str, Any]:
        """The model's inputs, with every column from the start."""
        texts = [*self.texts, *[self.texts[-1][self.position :]] * len(self._order)]
        firsts = [0] * len(self.texts) + [self.position] * len(self._order)
        width = self.whole
        owners = torch.tensor([owner for owner, text in enumerate(texts) for _ in text])
        seen = owners[:, None] == owners
        seen[self._ends[-1] :, self._ends[-1] - len(self.texts[-1]) : self._ends[-1] - self.tail] = True
        mask = torch.full((width, width), torch.finfo(model.module.dtype).min, dtype=model.module.dtype)
        mask[: len(owners), : len(owners)].masked_fill_(seen.tril(), 0)
        ids, positions = torch.zeros(2, 1, width, dtype=torch.long)
        ids[0, : len(owners)] = torch.tensor([token for text in texts for token in text])
        positions[0, : len(owners)] = torch.cat(
            [torch.arange(first, first + len(text)) for first, text in zip(firsts, texts, strict=True)]
        )
        given = {"input_ids": ids, "position_ids": positions, "attention_mask": mask[None, None]}
        return {name: value.to(model.device) for name, value in given.items()}

    def visit(self, place: Place, value: Tensor) -> Tensor:
        """Reads the states of the tokens, then lets the continuations of this layer join."""
        if value.ndim != 3:
            raise Unsupported("columns cannot join several residual streams")
        layer, joining = place.layer, [one for one in self.continuations if one.layer == place.layer]
        if layer in self._layers:
            self.states[layer] = value[0].index_select(0, self._columns.to(value.device))
        if joining:
            end = self._ends[-1]
            tails = value[:, end - self.tail : end].repeat(len(joining), 1, 1)
            tails[:, 0] = torch.stack([self.states[one.source_layer][one.token].to(value.device) for one in joining])
            value = torch.cat([value, tails.flatten(0, 1)[None]], dim=1)
        return nn.functional.pad(value, (0, 0, 0, self.whole - value.shape[1])) if layer == self._last else value


@torch.inference_mode()
def run_packed(model: StandardizedTransformer, packed: PackedPass) -> Float[Tensor, "row vocabulary"]:
    """Runs a packed pass.

    Returns:
        The logits after the last text, then after each of its continuations.
    """
    inputs: dict[str, Any] = {**packed.inputs(model), "use_cache": False}
    ends = torch.tensor(packed.outcomes, device=model.device)
    keeps = "logits_to_keep" in inspect.signature(model.module.forward).parameters
    if keeps:
        inputs["logits_to_keep"] = ends
    with _narrowed(model, packed.whole, packed.width):
        logits = execute(model, inputs, packed, lambda made: (made[0] if keeps else made[0, ends]).float())
    assert logits is not None
    return logits


@contextmanager
def _narrowed(model: StandardizedTransformer, whole: int, width: Callable[[int], int]) -> Generator[None]:
    """While this lasts, a layer reads its first columns alone, in its hidden states and whatever else it is given.

    Args:
        whole: The number of columns of the model's inputs.
        width: The number of columns that enter a layer.
    """

    def narrow(columns: int) -> Callable[..., Inputs]:
        def cut(value: Tensor) -> Tensor:
            for axis, size in enumerate(value.shape):
                value = value.narrow(axis, 0, columns) if size == whole else value
            return value

        return lambda module, args, kwargs: apply((args, kwargs), cut, Tensor)

    with ExitStack() as stack:
        for layer in model.anatomy.layers:
            hook = narrow(width(layer.index))
            stack.callback(layer.block.module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _next_prime(number: int) -> int:
    return next(n for n in count(number) if all(n % divisor for divisor in range(2, isqrt(n) + 1)))
