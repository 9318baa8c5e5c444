"""Affine maps of hidden states, applied before the final norm and the head."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.forward import Capture
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.reductions import translate_rows
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.lenses import LensMethod


@dataclass(frozen=True)
class Provenance:
    """The origin of a fitted lens, as recorded in its file.

    Attributes:
        prompts: The number of prompts; None where nobody says.
        corpus: What these were.
        model: The model's name.
        unembedding: The hash of the unembedding matrix, as `hash_unembedding` makes it.
        skip: How many of each prompt's first tokens were left out.
        hashes: A hash of each prompt that is known, so that none is counted twice.
    """

    prompts: int | None = None
    corpus: str | None = None
    model: str | None = None
    unembedding: str | None = None
    skip: int | None = None
    hashes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LensTranslation:
    """A matrix for each of some layers, and for a tuned lens a bias.

    A layer that has none is read as it is: for a Jacobian lens that is right at the last layer alone.

    Attributes:
        method: A Jacobian lens reads the residual stream after a layer as J h; a tuned lens as h + W h + b, of which
            `matrices` holds I + W.
        matrices: (output, hidden) by layer, in float32.
        biases: (output,) by layer.
        provenance: How it was fitted.
    """

    method: LensMethod
    matrices: dict[int, Float[Tensor, "output hidden"]]
    biases: dict[int, Float[Tensor, " output"]]
    provenance: Provenance = Provenance()

    @property
    def layers(self) -> list[int]:
        """The layers that it translates."""
        return sorted(self.matrices)

    @property
    def width(self) -> int:
        """The width of the states that it translates."""
        return next(iter(self.matrices.values())).shape[1]

    def translate(self, states: Float[Tensor, "*rows hidden"], layer: int) -> Float[Tensor, "*rows hidden"]:
        """States after a layer as states after the last one, in float32."""
        states = states.float()
        if layer in self.matrices:
            states = states @ self.matrices[layer].to(states.device).T
        return states + self.biases[layer].to(states.device) if layer in self.biases else states

    def pull_back(self, directions: Float[Tensor, "direction output"], layer: int) -> Float[Tensor, "direction hidden"]:
        """Directions after the last layer as directions after another one.

        But for the final norm, the lens's logit of a token is the state's projection on the direction that is pulled
        back from the row of the unembedding.
        """
        return directions @ self.matrices[layer] if layer in self.matrices else directions

    def capture(self, plain: Capture) -> Capture:
        """A capture of the residual stream after a layer, translated."""
        layer = plain.place.layer
        if layer not in self.matrices:
            return plain
        parts = {"matrix": self.matrices[layer], "bias": self.biases.get(layer)}
        return Capture(plain.place, translate_rows, {**plain.options, **parts})

    def require(self, model: StandardizedTransformer, layers: Sequence[int]) -> None:
        """Checks that it was fitted on this model, as far as can be told, and covers the layers.

        Raises:
            InvalidRequest: Width, layers or unembedding are another model's, or a layer is missing.
        """
        whose = f"the {self.method} lens"
        if self.width != model.hidden_size:
            raise InvalidRequest(
                f"{whose} translates states of width {self.width}, and those of this model have {model.hidden_size}."
            )
        if self.layers[-1] >= model.num_layers:
            raise InvalidRequest(
                f"{whose} has a layer {self.layers[-1]}, and this model has layers 0 to {model.num_layers - 1}."
            )
        theirs = self.provenance.unembedding
        if theirs is not None and theirs != hash_unembedding(model):
            raise InvalidRequest(f"{whose} was fitted on other weights: the unembedding differs.")
        missing = [layer for layer in layers if layer not in self.matrices and layer != model.num_layers - 1]
        if missing:
            listed = ", ".join(str(layer) for layer in missing)
            raise InvalidRequest(f"{whose} has no layer {listed}.", f"It has {self.layers[0]} to {self.layers[-1]}.")


def hash_unembedding(model: StandardizedTransformer) -> str:
    """The hash by which the tuned-lens library tells unembedding matrices apart: of a few numbers, to one digit."""
    weight = unembedding(model).detach().float().cpu().numpy()
    return hashlib.sha256(np.array_str(weight, precision=1).encode()).hexdigest()


def unembedding(model: StandardizedTransformer) -> Float[Tensor, "vocabulary hidden"]:
    """The matrix of the head.

    Raises:
        InvalidRequest: The head has none.
    """
    weight = getattr(model.anatomy.lm_head and model.anatomy.lm_head.module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise InvalidRequest("the head of this model has no matrix of one row for each token.")
    return weight


def stream_after(layer: int) -> Place:
    """The hook point that a lens reads at a layer: the residual stream after it."""
    return Place("layers_output", layer)


def shuffled_layers(lens: LensTranslation) -> dict[int, int]:
    """For each layer of a lens the layer half of all layers away."""
    layers = lens.layers
    half = max(1, len(layers) // 2)
    return dict(zip(layers, layers[half:] + layers[:half], strict=True))


def shuffled(lens: LensTranslation) -> LensTranslation:
    """The same maps at other layers, half of all layers away: a control that says whether a layer needs its own."""
    origins = shuffled_layers(lens)
    return LensTranslation(
        lens.method,
        {layer: lens.matrices[origin] for layer, origin in origins.items()},
        {layer: lens.biases[origin] for layer, origin in origins.items() if origin in lens.biases},
        lens.provenance,
    )


def random_like(lens: LensTranslation, seed: int = 0) -> LensTranslation:
    """Random matrices with the singular values and biases of the lens's own: a control for what any such map would do.

    Each matrix is multiplied by a random rotation from either side, the same two at every layer.
    """
    source = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(lens.width, lens.width, generator=source)).Q for _ in range(2))
    rotated = {layer: left @ matrix @ right for layer, matrix in lens.matrices.items()}
    return LensTranslation(lens.method, rotated, lens.biases, lens.provenance)
