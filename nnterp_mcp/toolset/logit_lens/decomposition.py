"""Decompositions of the states that are read into the directions that the lens reads as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.activations import read_states
from nnterp_mcp.experiments.translated_lens.decomposition import (
    Decomposition,
    TokenDirections,
    decompose_states,
    rotate_at_random,
)
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation, shuffled_layers
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.toolset.logit_lens.result import LensReading, TokenSum


class Decomposer:
    """Decomposes states by one lens, next to its controls.

    Args:
        model: The model.
        lens: The fitted lens; None for the logit lens.
        count: The number of directions of each state.
    """

    def __init__(self, model: StandardizedTransformer, lens: LensTranslation | None, count: int) -> None:
        self._model, self._lens, self._count = model, lens, count
        self._directions = cache(lambda layer: TokenDirections.of(model, lens, layer))
        self._plain = cache(lambda: TokenDirections.of(model))
        self._others = {} if lens is None or len(lens.layers) < 2 else shuffled_layers(lens)

    def extend(
        self,
        readings: Sequence[LensReading],
        work: Workload,
        positions: Sequence[Sequence[int]],
        layers: Sequence[int],
    ) -> list[LensReading]:
        """The readings with a decomposition at each layer.

        Args:
            readings: The lens at every position of the prompts, in their order.
            work: The prompts.
            positions: The positions in each.
            layers: The layers, in ascending order.
        """
        states = read_states(self._model, work, positions, layers)
        plain = None if self._lens is None else self._plain_shares(states)
        sums = [
            self._sums(states[:, at], layer, None if plain is None else plain[:, at]) for at, layer in enumerate(layers)
        ]
        return [
            reading.model_copy(
                update={
                    "layers": [
                        layer.model_copy(update={"decomposition": sums[at][number]})
                        for at, layer in enumerate(reading.layers)
                    ]
                }
            )
            for number, reading in enumerate(readings)
        ]

    def _plain_shares(self, states: Float[Tensor, "reading layer hidden"]) -> Float[Tensor, "reading layer"]:
        """The shares that rows of the unembedding explain."""
        found = decompose_states(states.flatten(0, 1), self._plain(), self._count)
        return found.explained[:, -1].unflatten(0, states.shape[:2])

    def _sums(
        self, states: Float[Tensor, "reading hidden"], layer: int, plain: Float[Tensor, " reading"] | None
    ) -> list[TokenSum]:
        count, both = len(states), torch.cat([states.float(), rotate_at_random(states)])
        found = decompose_states(both, self._directions(layer), self._count)
        controls = {"rotated": found.explained[count:, -1]}
        if plain is not None and self._lens is not None and layer in self._lens.matrices:
            controls["unembedding"] = plain
        if layer in self._others:
            other = self._directions(self._others[layer])
            controls["other layers"] = decompose_states(states, other, self._count).explained[:, -1]
        return [
            TokenSum(
                tokens=self._tokens(found, at),
                explained=float(found.explained[at, -1]),
                controls={name: float(shares[at]) for name, shares in controls.items()},
            )
            for at in range(count)
        ]

    def _tokens(self, found: Decomposition, at: int) -> list[tuple[str, float]]:
        """The tokens with a part in the sum, the longest first."""
        pairs = zip(found.tokens[at].tolist(), found.weights[at].tolist(), strict=True)
        parts = sorted(((token, weight) for token, weight in pairs if weight > 0), key=lambda part: -part[1])
        return [(token_text(self._model.tokenizer, token), weight) for token, weight in parts]
