"""The PyTorch modules of a Hugging Face model under the standard names, without tracing anything."""

from __future__ import annotations

from torch import nn

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.accessors import layer_index, require_part
from nnterp_mcp.model.anatomy import Anatomy, Site
from nnterp_mcp.model.implementation import probe_eagerly
from nnterp_mcp.model.rename import RenameConfig, find_named
from nnterp_mcp.model.resolve import resolve


class ModuleAccessor:
    """Standard names for the modules of a loaded model: to attach hooks to, or to read weights from.

    `embed_tokens`, `layers`, `ln_final` and `lm_head` are attributes; a layer's parts have methods.

    Args:
        model: A loaded Hugging Face causal LM; a few tokens are run through it.
        rename_config: Which modules are which, where that cannot be told from the structure.
        rename: Further names: from a module's path, or its end, to the attribute that shall give it.
    """

    def __init__(
        self, model: nn.Module, rename_config: RenameConfig | None = None, rename: dict[str, str] | None = None
    ) -> None:
        self.model = model
        self.anatomy: Anatomy = resolve(model, probe_eagerly(model), rename_config)
        self._renamed = {alias: path for path, alias in (rename or {}).items()}

    def __getattr__(self, name: str) -> nn.Module:
        path = self.__dict__.get("_renamed", {}).get(name)
        module = None if path is None else find_named(self.model, path)
        if module is None:
            raise AttributeError(f"{name!r} is not a standard name: embed_tokens, layers, ln_final, lm_head are.")
        return module

    @property
    def embed_tokens(self) -> nn.Module:
        """The token embedding."""
        return self.anatomy.embed_tokens.module

    @property
    def layers(self) -> nn.ModuleList:
        """The list of layers."""
        module = self.anatomy.layers_module.module
        if not isinstance(module, nn.ModuleList):
            raise InvalidRequest(f"the layers are held by a {type(module).__name__}, not by a ModuleList.")
        return module

    @property
    def ln_final(self) -> nn.Module:
        """The norm between the last layer and the head."""
        return self._present(self.anatomy.ln_final, "norm after its last layer")

    @property
    def lm_head(self) -> nn.Module:
        """The module from hidden states to logits."""
        return self._present(self.anatomy.lm_head, "head that is a module")

    def get_embed_tokens(self) -> nn.Module:
        """The token embedding."""
        return self.embed_tokens

    def get_layers(self) -> nn.ModuleList:
        """The list of layers."""
        return self.layers

    def get_attention(self, layer: int) -> nn.Module:
        """A layer's attention."""
        return self._part(layer, "attention")

    def get_mlp(self, layer: int) -> nn.Module:
        """A layer's MLP."""
        return self._part(layer, "mlp")

    def get_unembed_norm(self) -> nn.Module:
        """The norm between the last layer and the head."""
        return self.ln_final

    def get_unembed(self) -> nn.Module:
        """The module from hidden states to logits."""
        return self.lm_head

    def _part(self, layer: int, part: str) -> nn.Module:
        name = type(self.model).__name__
        facts = self.anatomy.layers[layer_index(layer, self.anatomy, name)]
        return require_part(facts, "mlp" if part == "mlp" else "attention", self.anatomy, name).module

    def _present(self, site: Site | None, what: str) -> nn.Module:
        if site is None:
            raise Unsupported(f"{type(self.model).__name__} has no {what}.")
        return site.module
