"""Fits a tuned lens in closed form: the affine map from a layer's states to those after the last layer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nnterp_mcp.engine.forward import Capture, forward
from nnterp_mcp.engine.readouts.reductions import take_rows
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.translated_lens.jacobian import hash_prompt
from nnterp_mcp.experiments.translated_lens.translation import (
    LensTranslation,
    Provenance,
    hash_unembedding,
    stream_after,
)
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch

_KEY = "nnterp_mcp.tuned_sums"

RIDGE = 0.1
"""Penalty on W, as a share of the mean variance of a component of the states."""


@dataclass(frozen=True)
class TunedSums:
    """Sums over tokens of all that the least-squares fit needs; those over other tokens can be added. In float64.

    Attributes:
        layers: The layers, in ascending order.
        squares: The sum of h hᵀ, h the states after each layer with a 1 appended.
        products: The sum of h (h_last - h)ᵀ.
        tokens: The number of tokens.
        prompts: The number of prompts.
        unembedding: The hash of the model's unembedding.
        skip: How many of each prompt's first tokens are left out.
        hashes: The hashes of the prompts.
    """

    layers: list[int]
    squares: Float[Tensor, "layer extended extended"]
    products: Float[Tensor, "layer extended hidden"]
    tokens: int
    prompts: int
    unembedding: str
    skip: int = 1
    hashes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Their size in bytes."""
        return self.squares.nbytes + self.products.nbytes

    def __add__(self, other: TunedSums) -> TunedSums:
        """The sums over the tokens of both.

        Raises:
            InvalidRequest: The layers, the models or the tokens that are left out differ.
        """
        if (self.layers, self.unembedding, self.skip) != (other.layers, other.unembedding, other.skip):
            raise InvalidRequest(
                "fits can be merged if they have the same model and the same layers, and leave out as many tokens."
            )
        return replace(
            self,
            squares=self.squares + other.squares,
            products=self.products + other.products,
            tokens=self.tokens + other.tokens,
            prompts=self.prompts + other.prompts,
            hashes=self.hashes + other.hashes,
        )

    def lens(self, provenance: Provenance = Provenance(), ridge: float = RIDGE) -> LensTranslation:  # noqa: B008 - frozen
        """The lens: W and b with the least squared error, and a penalty on W that draws it to the plain lens."""
        width = self.products.shape[-1]
        about = replace(provenance, prompts=self.prompts, unembedding=self.unembedding, hashes=self.hashes)
        found = LensTranslation("tuned", {}, {}, about)
        for layer, squares, products in zip(self.layers, self.squares, self.products, strict=True):
            means = squares[-1, :width] / self.tokens
            variance = (squares.diagonal()[:width] / self.tokens - means.square()).mean()
            penalty = torch.full((width + 1,), float(ridge * variance * self.tokens), dtype=torch.float64)
            penalty[-1] = 0  # the bias is free
            weights = torch.linalg.lstsq(squares + penalty.diag(), products).solution
            found.matrices[layer] = (weights[:width].T + torch.eye(width)).float()
            found.biases[layer] = weights[width].float()
        return found


def fit_tuned(model: StandardizedTransformer, work: Workload, layers: Sequence[int], *, skip: int = 1) -> TunedSums:
    """Gathers what the closed form of a tuned lens needs: h + W h + b ≈ h_last, by least squares over tokens.

    Published tuned lenses minimize KL(model ‖ lens) by gradient descent instead. Least squares is its closed form for
    the states before the final norm: it is exact, can be merged and resumed, and weighs all components of the states
    alike, of which the head reads some more than others. A lens that was fitted on the model's outputs may read at a
    layer what later layers are yet to compute: it tells what can be predicted, not what is represented.

    Args:
        model: The model.
        work: The prompts; no operations.
        layers: The layers before the last one, in ascending order.
        skip: How many of a prompt's first tokens to leave out.

    Returns:
        The sums over all tokens.

    Raises:
        InvalidRequest: No prompt has more tokens than are left out.

    Source: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens" (2023).
    """
    width = model.hidden_size
    places = [stream_after(layer) for layer in [*layers, model.num_layers - 1]]
    squares = torch.zeros(len(layers), width + 1, width + 1, dtype=torch.float64)
    products = torch.zeros(len(layers), width + 1, width, dtype=torch.float64)
    tokens = 0

    def run(batch: Batch, numbers: Sequence[int]) -> list[Float[Tensor, "token hidden"]]:
        pairs = [
            (row, padding + at)
            for row, (padding, prompt) in enumerate(zip(batch.padding, batch.prompts, strict=True))
            for at in range(skip, len(prompt.ids))
        ]
        rows, columns = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
        captures = [Capture(place, take_rows, {"rows": rows, "columns": columns}) for place in places]
        return [states.double() for states in forward(model, batch, work.plan, captures).values]

    for _, (*states, last) in work.run_batches(model, run):
        tokens += len(last)
        for at, state in enumerate(states):
            extended = torch.cat([state, torch.ones_like(state[:, :1])], dim=1)
            squares[at] += (extended.T @ extended).cpu()
            products[at] += (extended.T @ (last.to(state) - state)).cpu()
    if not tokens:
        raise InvalidRequest(f"no prompt has more than {skip} tokens, and a fit leaves out the first {skip}.")
    hashes = tuple(map(hash_prompt, work.prompts))
    return TunedSums([*layers], squares, products, tokens, len(hashes), hash_unembedding(model), skip, hashes)


def save_sums(sums: TunedSums, path: Path) -> None:
    """Writes the sums of a tuned lens as safetensors, for a later fit to add to."""
    about = {name: value for name, value in vars(sums).items() if not isinstance(value, Tensor)}
    save_file({"squares": sums.squares, "products": sums.products}, path, {_KEY: json.dumps(about)})


def read_sums(path: Path) -> TunedSums:
    """Reads what `save_sums` wrote.

    Raises:
        InvalidRequest: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()[_KEY])
            tensors = {name: file.get_tensor(name) for name in ("squares", "products")}
        about["hashes"] = tuple(about["hashes"])
        return TunedSums(**tensors, **about)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"{path.name} does not hold the sums of a tuned lens, or is damaged.") from error
