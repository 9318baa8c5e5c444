"""Direct effects of features on the logits, and features with similar decoder rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.experiments.attribution.linearize import freeze_norm
from nnterp_mcp.experiments.features.dictionary import Dictionary
from nnterp_mcp.experiments.features.readings import is_added_as_is
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.feature_sites import FeaturePlace

_STREAM = ("token_embeddings", "layers_input", "layers_output", "residual_mid", "attentions_output", "mlps_output")
"""Sites whose states are added to the residual stream, or are the stream itself."""


@dataclass(frozen=True)
class LogitEffects:
    """Tokens whose logits features raise and lower most, as they write to the residual stream.

    Attributes:
        promoted: The tokens that are raised most, by feature.
        suppressed: Those that are lowered most.
        promoted_by: The effect on each of the former, of an activation of 1 on a stream whose normed size is 1.
        suppressed_by: That on each of the latter.
    """

    promoted: list[list[int]]
    suppressed: list[list[int]]
    promoted_by: list[list[float]]
    suppressed_by: list[list[float]]


def writes_to_stream(model: StandardizedTransformer, made: Dictionary, place: FeaturePlace) -> bool:
    """True if what features write lies in the residual stream, and final norm and head read it as it is."""
    anatomy = model.anatomy
    wide = made.decoder.shape[1] == model.hidden_size and anatomy.streams == 1
    return wide and anatomy.lm_head is not None and (place.site in _STREAM or is_added_as_is(model, place))


@torch.no_grad()
def find_logit_effects(
    model: StandardizedTransformer, made: Dictionary, features: Sequence[int], top_k: int
) -> LogitEffects:
    """The direct effect of features on the logits: decoder rows through the final norm and the head.

    What later layers make of them is not in it. The norm is taken as its gain alone, at a state of root mean square 1
    (less the mean, where it centres): how large a stream is differs by token, which tokens are raised does not.

    Args:
        model: The model; one for which `writes_to_stream` holds.
        made: The dictionary.
        features: The features.
        top_k: Tokens on either side.
    """
    rows = made.decoder[list(features)]
    norm, head = model.anatomy.ln_final, model.anatomy.lm_head
    assert head is not None
    with model.standing_down():
        if norm is not None:
            unit = torch.ones(1, rows.shape[1], device=rows.device)
            unit[:, 1::2] = -1
            frozen = freeze_norm(norm.module, unit)
            written = rows.double() - rows.double().mean(-1, keepdim=True) if frozen.centres else rows.double()
            rows = written * frozen.gain.to(written)
        like = next(head.module.parameters(), rows)
        logits = (
            head.module(rows.to(like)[:, None])[:, 0] - head.module(torch.zeros_like(rows[:1]).to(like)[:, None])[:, 0]
        )
    high, low = logits.float().topk(top_k), (-logits.float()).topk(top_k)
    return LogitEffects(high.indices.tolist(), low.indices.tolist(), high.values.tolist(), (-low.values).tolist())


def find_nearest(made: Dictionary, features: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
    """The features whose decoder rows have the largest cosine with those of some features, without themselves."""
    rows: Float[Tensor, "latent output"] = torch.nn.functional.normalize(made.decoder, dim=-1)
    cosines = rows[list(features)] @ rows.T
    cosines[torch.arange(len(features)), torch.tensor(list(features))] = -torch.inf
    top = cosines.topk(min(count, max(1, len(rows) - 1)))
    return [
        list(zip(at, values, strict=True)) for at, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
