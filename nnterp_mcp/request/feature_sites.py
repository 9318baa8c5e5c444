"""Where dictionaries of features read a model: our sites, two more that are read only, and how others call them."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, get_args

from nnterp_mcp.request.sites import SITES, Site

FeatureSite = Site | Literal["residual_mid", "residual_mid_normalized"]
"""A site, or the residual stream between attention and MLP: as it is, and as the norm before the MLP has it before its
gain."""

FEATURE_SITES: tuple[FeatureSite, ...] = (*SITES, *get_args(get_args(FeatureSite)[1]))


class FeaturePlace(NamedTuple):
    """A site of a layer; `token_embeddings` has no layer."""

    site: FeatureSite
    layer: int | None = None

    def __str__(self) -> str:
        """As errors and answers name it."""
        return self.site if self.layer is None else f"{self.site} of layer {self.layer}"


_TRANSFORMER_LENS: dict[str, FeatureSite] = {
    "hook_resid_pre": "layers_input",
    "hook_resid_mid": "residual_mid",
    "hook_resid_post": "layers_output",
    "hook_attn_out": "attentions_output",
    "hook_mlp_out": "mlps_output",
    "hook_mlp_in": "residual_mid",
    "attn.hook_z": "heads_output",
    "mlp.hook_in": "mlps_input",
    "mlp.hook_out": "mlps_raw_output",
    "ln2.hook_normalized": "residual_mid_normalized",
}
"""The names of TransformerLens, below `blocks.N`."""

_MODULES: dict[str, FeatureSite] = {
    "": "layers_output",
    "output": "layers_output",
    "input": "layers_input",
    "mlp": "mlps_raw_output",
    "mlp.output": "mlps_raw_output",
    "mlp.input": "mlps_input",
    "self_attn": "attentions_raw_output",
    "attn": "attentions_raw_output",
    "attention": "attentions_raw_output",
    "self_attn.output": "attentions_raw_output",
    "self_attn.o_proj.input": "heads_output",
    "pre_feedforward_layernorm.output": "mlps_input",
    "post_feedforward_layernorm.output": "mlps_output",
}
"""Modules of transformers, below a layer; of Gemma's the norms around the MLP too."""

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_MODULE = re.compile(r"(?:.*?\.)?(?:layers|h)[._](\d+)\.?(.*)")


def place_of(name: str) -> FeaturePlace | None:
    """The place that a hook of TransformerLens or a module of transformers stands for; None where it is not known."""
    if name in ("hook_embed", "embed_tokens", "model.embed_tokens.output"):
        return FeaturePlace("token_embeddings")
    for pattern, sites in ((_BLOCK, _TRANSFORMER_LENS), (_MODULE, _MODULES)):
        found = pattern.fullmatch(name)
        site = None if found is None else sites.get(found[2])
        if found is not None and site is not None:
            return FeaturePlace(site, int(found[1]))
    return None
