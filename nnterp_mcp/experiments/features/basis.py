"""Dictionaries as interventions see them: from the states at hook points to features, and from features to changes."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.planning.features import FeatureBasis
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.features.dictionary import Dictionary
from nnterp_mcp.experiments.features.readings import combine, sites_behind
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.feature_sites import FeaturePlace


def basis_of(
    model: StandardizedTransformer, name: str, made: Dictionary, place: FeaturePlace, out: FeaturePlace | None
) -> FeatureBasis:
    """A dictionary as interventions see it.

    Args:
        model: The model.
        name: Its name.
        made: The dictionary.
        place: The place that it reads.
        out: The place that a transcoder writes to; None for an autoencoder.

    Raises:
        Unsupported: The place that it reconstructs is only read.
    """
    written = out or place
    if written.site == "residual_mid_normalized":
        raise Unsupported(f"features that reconstruct the {written} cannot be edited: that place is only read.")

    def states(parts: Sequence[Tensor]) -> Float[Tensor, "token width"]:
        return combine(model, place, parts).to(made.encoder)

    def encode(parts: Sequence[Tensor]) -> Float[Tensor, "token latent"]:
        return made.encode(states(parts))

    def write(
        change: Float[Tensor, "token chosen"], chosen: Int[Tensor, " chosen"], parts: Sequence[Tensor]
    ) -> Float[Tensor, "token output"]:
        return made.decode_change(change, chosen, states(parts))

    # The stream between attention and MLP moves by what is added to the contribution of attention.
    width = made.decoder.shape[1]
    return FeatureBasis(name, made.latents, sites_behind(place), _writable(written), width, encode, write)


def _writable(place: FeaturePlace) -> Place:
    return sites_behind(place)[-1]
