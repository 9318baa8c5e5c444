"""Sparse autoencoders and transcoders: the arithmetic that encodes states as features, and decodes these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest

Normalization = Literal["none", "constant_norm", "layer_norm", "expected_norm"]
"""Normalization of states before they are encoded: none; scaled to the norm sqrt(width) each; centred and scaled to a
standard deviation of 1 each; or all scaled by one factor, so that their mean norm is sqrt(width)."""

_EPSILON = 1e-5
"""Added to a state's standard deviation before dividing by it, as in SAELens."""


@dataclass(frozen=True)
class Activation:
    """The function from pre-activations to features; ReLU by itself.

    Attributes:
        threshold: JumpReLU: pre-activations that are not above it are zero.
        k: TopK: all but the k largest are zero.
        grouped: With k, the largest of each of k equal groups in place of the k largest.
        gate_bias: A gated autoencoder: its gate is open where pre-activation plus this is positive.
        magnitude_bias: Its bias for the size of an open feature.
        magnitude_log_scale: The logarithm of its factor for that size.
    """

    threshold: Float[Tensor, "*latent"] | None = None
    k: int | None = None
    grouped: bool = False
    gate_bias: Float[Tensor, " latent"] | None = None
    magnitude_bias: Float[Tensor, " latent"] | None = None
    magnitude_log_scale: Float[Tensor, " latent"] | None = None

    @property
    def name(self) -> str:
        """Its name in the field."""
        if self.gate_bias is not None:
            return "gated"
        if self.k is not None:
            return "group max" if self.grouped else f"TopK ({self.k})"
        return "ReLU" if self.threshold is None else "JumpReLU"

    def __call__(self, pre: Float[Tensor, "token latent"]) -> Float[Tensor, "token latent"]:
        """The features of pre-activations."""
        if self.gate_bias is not None and self.magnitude_bias is not None:
            scale = 1 if self.magnitude_log_scale is None else self.magnitude_log_scale.exp()
            return (pre * scale + self.magnitude_bias).relu() * (pre + self.gate_bias > 0)
        if self.threshold is not None:
            return pre.relu() * (pre > self.threshold)
        if self.k is None:
            return pre.relu()
        grouped = pre.unflatten(-1, (self.k, -1)) if self.grouped else pre
        top = grouped.topk(1 if self.grouped else min(self.k, pre.shape[-1]), dim=-1)
        return torch.zeros_like(grouped).scatter(-1, top.indices, top.values.relu()).reshape(pre.shape)


@dataclass(frozen=True)
class Dictionary:
    """A sparse autoencoder or a transcoder of one layer, in float32.

    With the normalized state x~ = norm(x), less the decoder's bias where the input is centred, the features are
    f = activation(W_enc x~ + b_enc), and the reconstruction is f W_dec + b_dec, normalization undone. A transcoder
    reconstructs other states than it reads, undoes no normalization, and may add a linear map of x (the skip).

    Attributes:
        encoder: A row for each feature.
        decoder: A row for each feature: what it writes.
        encoder_bias: Added to the pre-activations.
        decoder_bias: Added to the reconstruction.
        activation: From pre-activations to features.
        centred: The decoder's bias is subtracted from what is encoded.
        normalization: What is done to states first.
        transcodes: It reconstructs other states than it reads.
        skip: A transcoder's linear map from what it reads to what it writes.
    """

    encoder: Float[Tensor, "latent input"]
    decoder: Float[Tensor, "latent output"]
    encoder_bias: Float[Tensor, " latent"]
    decoder_bias: Float[Tensor, " output"]
    activation: Activation = Activation()
    centred: bool = False
    normalization: Normalization = "none"
    transcodes: bool = False
    skip: Float[Tensor, "output input"] | None = None

    @property
    def latents(self) -> int:
        """The number of features."""
        return self.encoder.shape[0]

    @property
    def nbytes(self) -> int:
        """The size of its numbers in bytes."""
        return sum(part.nbytes for part in _tensors(self) + _tensors(self.activation))

    def encode(self, states: Float[Tensor, "token input"]) -> Float[Tensor, "token latent"]:
        """The features of states."""
        read = self._normalized(states.to(self.encoder))
        read = read - self.decoder_bias if self.centred else read
        return self.activation(torch.nn.functional.linear(read, self.encoder, self.encoder_bias))

    def decode(
        self, features: Float[Tensor, "token latent"], states: Float[Tensor, "token input"]
    ) -> Float[Tensor, "token output"]:
        """The reconstruction that features stand for.

        Args:
            features: The features.
            states: The states that they were encoded from, whose normalization is undone and which a skip reads.
        """
        read = states.to(self.encoder)
        made = features @ self.decoder + self.decoder_bias
        if self.skip is not None:
            made = made + torch.nn.functional.linear(read, self.skip)
        return made if self.transcodes else self._restored(made, read)

    def decode_change(
        self,
        change: Float[Tensor, "token chosen"],
        chosen: Int[Tensor, " chosen"],
        states: Float[Tensor, "token input"],
    ) -> Float[Tensor, "token output"]:
        """The change of the reconstruction from changes of some features.

        Args:
            change: How far each of them changes.
            chosen: Their indices.
            states: The states that were encoded.
        """
        return change @ self.decoder[chosen] * self.write_scales(states)

    def write_scales(self, states: Float[Tensor, "token input"]) -> Float[Tensor, "token 1"]:
        """The factor of decoder rows at each token, where normalization is undone; 1 elsewhere."""
        if not self.transcodes and self.normalization == "constant_norm":
            return states.norm(dim=-1, keepdim=True) / states.shape[-1] ** 0.5
        if not self.transcodes and self.normalization == "layer_norm":
            return states.std(-1, keepdim=True)
        return torch.ones_like(states[:, :1])

    def reconstruct(self, states: Float[Tensor, "token input"]) -> Float[Tensor, "token output"]:
        """The states as the dictionary has them: encoded and decoded."""
        return self.decode(self.encode(states), states)

    def scaled(self, factor: float, out: float | None = None) -> Dictionary:
        """The dictionary that does to states what this one does to states times a factor, and divides afterwards.

        Args:
            factor: The factor.
            out: What the reconstruction is divided by; the factor itself by default.
        """
        out = factor if out is None else out
        return replace(
            self,
            encoder=self.encoder * factor,
            encoder_bias=self._shifted(factor, out),
            decoder=self.decoder / out,
            decoder_bias=self.decoder_bias / out,
            skip=None if self.skip is None else self.skip * (factor / out),
            normalization="none",
        )

    def moved(self, device: torch.device) -> Dictionary:
        """The same on a device."""
        activation = _mapped(self.activation, lambda part: part.to(device))
        return _mapped(replace(self, activation=activation), lambda part: part.to(device))

    def _shifted(self, factor: float, out: float) -> Tensor:
        """The encoder's bias where the decoder's is divided by something else than the input is multiplied by."""
        if not self.centred or factor == out:
            return self.encoder_bias
        return self.encoder_bias - self.encoder @ (self.decoder_bias * (1 - factor / out))

    def _normalized(self, states: Tensor) -> Tensor:
        if self.normalization == "constant_norm":
            return states * (states.shape[-1] ** 0.5 / states.norm(dim=-1, keepdim=True))
        if self.normalization == "layer_norm":
            centred = states - states.mean(-1, keepdim=True)
            return centred / (centred.std(-1, keepdim=True) + _EPSILON)
        if self.normalization == "expected_norm":
            raise InvalidRequest(
                "the dictionary's factor for its input is not known: it is sqrt(width) over the mean norm of states."
            )
        return states

    def _restored(self, made: Tensor, states: Tensor) -> Tensor:
        if self.normalization == "constant_norm":
            return made / (states.shape[-1] ** 0.5 / states.norm(dim=-1, keepdim=True))
        if self.normalization == "layer_norm":
            mean = states.mean(-1, keepdim=True)
            return made * (states - mean).std(-1, keepdim=True) + mean
        return made


_V = TypeVar("_V", Dictionary, Activation)


def fold_decoder_norms(made: Dictionary) -> Dictionary:
    """The same map with decoder rows of length one, and features that are larger by what these lost.

    TopK autoencoders that choose by what a feature writes rank their features so.
    """
    norms = made.decoder.norm(dim=-1)
    return replace(
        made,
        encoder=made.encoder * norms[:, None],
        encoder_bias=made.encoder_bias * norms,
        decoder=made.decoder / norms[:, None],
    )


def _tensors(value: Dictionary | Activation) -> list[Tensor]:
    return [part for field in fields(value) if isinstance(part := getattr(value, field.name), Tensor)]


def _mapped(value: _V, change: Callable[[Tensor], Tensor]) -> _V:
    parts = {field.name: getattr(value, field.name) for field in fields(value)}
    return replace(value, **{name: change(part) for name, part in parts.items() if isinstance(part, Tensor)})
