"""A dictionary in files, before its tensors are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.dictionary import Activation, Dictionary, Normalization
from nnterp_mcp.experiments.features.tensor_files import TensorFile
from nnterp_mcp.request.feature_sites import FeaturePlace


@dataclass(frozen=True)
class Published:
    """A dictionary of one layer, as its files describe it.

    Attributes:
        layout: Whose layout the files have.
        name: Its file or folder.
        reads: Where it reads; None where the files do not say.
        writes: Where a transcoder writes; None for an autoencoder, and where the files do not say.
        load: Reads its tensors.
        transcodes: It is a transcoder.
        declared_l0: How many features are active at a token, as the files say.
        trained_on: The model that it was trained on, as the files say.
        neuronpedia: The model and the dictionary as Neuronpedia names them, as the files say.
        folder: The folder of its files.
        decoders: Of a cross-layer transcoder, what reads the decoder to one of the layers that it writes to.
    """

    layout: str
    name: str
    reads: FeaturePlace | None
    load: Callable[[], Dictionary]
    writes: FeaturePlace | None = None
    transcodes: bool = False
    declared_l0: float | None = None
    trained_on: str | None = None
    neuronpedia: str | None = None
    folder: Path | None = None
    decoders: Mapping[int, Callable[[], Float[Tensor, "latent output"]]] = field(
        default_factory=dict[int, Callable[[], Tensor]]
    )

    @property
    def layer(self) -> int | None:
        """The layer that it reads."""
        return None if self.reads is None else self.reads.layer


def assemble(
    file: TensorFile,
    encoder: Tensor,
    decoder: Tensor,
    encoder_bias: Tensor | None,
    decoder_bias: Tensor,
    activation: Activation = Activation(),  # noqa: B008 - frozen
    *,
    centred: bool = False,
    normalization: Normalization = "none",
    transcodes: bool = False,
    skip: Tensor | None = None,
) -> Dictionary:
    """A dictionary of tensors that were read, whose shapes must fit one another.

    Args:
        file: The file, for errors.
        encoder: (latent, input).
        decoder: (latent, output).
        encoder_bias: (latent,), or None for none.
        decoder_bias: (output,).
        activation: From pre-activations to features.
        centred: The decoder's bias is subtracted first.
        normalization: What is done to states first.
        transcodes: It is a transcoder.
        skip: (output, input), or None for none.

    Raises:
        InvalidRequest: A shape does not fit.
    """
    if encoder.ndim != 2 or decoder.ndim != 2:
        raise InvalidRequest(f"encoder and decoder of {file.path.name} must be matrices.")
    (latents, width), out = encoder.shape, decoder.shape[1]
    bias = torch.zeros(latents) if encoder_bias is None else encoder_bias
    wanted: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "decoder": (decoder, (latents, width if not transcodes else out)),
        "encoder's bias": (bias, (latents,)),
        "decoder's bias": (decoder_bias, (out,)),
        "skip": (skip, (out, width)),
        "threshold": (_by_latent(activation.threshold), (latents,)),
        "gate's bias": (activation.gate_bias, (latents,)),
        "magnitude's bias": (activation.magnitude_bias, (latents,)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise InvalidRequest(
                f"the {name} of {file.path.name} has the shape {tuple(tensor.shape)}, and {latents} features of states "
                f"of width {width} need {shape}."
            )
    return Dictionary(
        encoder, decoder, bias, decoder_bias, activation, centred, normalization, transcodes=transcodes, skip=skip
    )


def _by_latent(threshold: Tensor | None) -> Tensor | None:
    """A threshold unless it is one number for all."""
    return None if threshold is None or threshold.ndim == 0 else threshold
