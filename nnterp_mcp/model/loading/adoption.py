"""Standard names for models that nnsight or transformers made, which nnterp's functions accept too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnsight.intervention.envoy import Envoy
from torch import nn

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.accessors import Named
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.anatomy import Anatomy, Site
from nnterp_mcp.model.structure.call_recorder import probe
from nnterp_mcp.model.structure.rename import RenameConfig
from nnterp_mcp.model.structure.resolve import resolve


def standardize(model: Any) -> StandardizedTransformer:
    """The model under standard names.

    Args:
        model: A `StandardizedTransformer`, or another of nnsight's models of a causal LM, whose weights it shares and
            whose edits it does not; it is made once, and checked then.

    Raises:
        InvalidRequest: It is neither.
    """
    if isinstance(model, StandardizedTransformer):
        return model
    module = module_of(model)
    made = model.__dict__.get("_nnterp_standardized")
    if made is None or made.module is not module:
        made = StandardizedTransformer(module, tokenizer=getattr(model, "tokenizer", None))
        object.__setattr__(model, "_nnterp_standardized", made)
    return made


def anatomy_of(model: Any, rename_config: RenameConfig | None = None) -> Anatomy:
    """A model's anatomy, resolved in a short forward pass if it is not known yet.

    Args:
        model: A model of nnsight's or transformers'.
        rename_config: Names of modules that structure alone does not identify.
    """
    if isinstance(model, nn.Module):
        return resolve(model, probe(model), rename_config)
    if isinstance(model, StandardizedTransformer):
        return model.anatomy
    module = module_of(model)
    found = model.__dict__.get("_nnterp_anatomy")
    if found is None or rename_config is not None:
        with StandardizedTransformer.standing_down(model):
            found = resolve(module, probe(module), rename_config)
        object.__setattr__(model, "_nnterp_anatomy", found)
    return found


def named(model: Any) -> Named:
    """A model inside a running trace, under standard names.

    Args:
        model: A `StandardizedTransformer`, which comes back as it is, or another of nnsight's models of a causal LM.
    """
    if isinstance(model, StandardizedTransformer):
        return model
    return _Named(model, anatomy_of(model), type(module_of(model)).__name__)


@dataclass
class _Named:
    """A model that nnsight wrapped without standard names."""

    model: Any
    anatomy: Anatomy
    name: str

    def envoy(self, site: Site) -> Envoy:
        return self.model.interleaver.envoys[id(site.module)]


def module_of(model: Any) -> nn.Module:
    """The PyTorch module that nnsight wraps, with its weights loaded.

    Raises:
        InvalidRequest: The model is none of nnsight's.
    """
    if not isinstance(getattr(model, "_module", None), nn.Module):
        raise InvalidRequest(
            f"a {type(model).__name__} is no model of nnsight's.",
            "Wrap it: StandardizedTransformer(model, tokenizer=…).",
        )
    if not getattr(model, "dispatched", True):
        model.dispatch()
    return model._module
