"""The PyTorch modules of a Hugging Face model under the standard names, without tracing anything."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from nnsight import NNsight
from torch import nn

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.accessors import layer_index, require_part
from nnterp_mcp.model.structure.anatomy import Anatomy, Site
from nnterp_mcp.model.structure.attention_backend import probe_eagerly
from nnterp_mcp.model.structure.names import bind_names
from nnterp_mcp.model.structure.rename import RenameConfig, find_named, read_names
from nnterp_mcp.model.structure.resolve import resolve


class ModuleAccessor:
    """Standard names for the modules of a loaded model: to attach hooks to, or to read weights from.

    `embed_tokens`, `layers`, `ln_final`, `lm_head` and `model`, which holds the layers, are attributes, and so are the
    model's own modules under their names; a layer's parts have methods.

    Args:
        model: A loaded Hugging Face causal LM; a few tokens are run through it.
        rename_config: Which modules are which, where that cannot be told from the structure.
        rename: Further names: from a module's path, or its end, to the attribute that shall give it. A standard name
            says which module has it, as `rename_config` does.
    """

    def __init__(
        self,
        model: nn.Module,
        rename_config: RenameConfig | None = None,
        rename: Mapping[str, str | list[str]] | None = None,
    ) -> None:
        self._root = model
        rename_config, self._further = read_names(rename_config, rename, {})
        self.anatomy: Anatomy = resolve(model, probe_eagerly(model), rename_config)

    def __getattr__(self, name: str) -> nn.Module:
        root = self.__dict__.get("_root")
        module = getattr(root, name, None)
        if root is not None and not isinstance(module, nn.Module):
            module = find_named(root, [own for own, aliases in self._further.items() if name in aliases])
        if not isinstance(module, nn.Module):
            raise AttributeError(
                f"Attribute {name} is not a module: embed_tokens, layers, ln_final, lm_head and model are there."
            )
        return module

    @cached_property
    def nn_model(self) -> NNsight:
        """The model as nnsight wraps it, under the standard names."""
        wrapped = NNsight(self._root, rename={**self._further})
        bind_names(wrapped, self.anatomy)
        return wrapped

    @property
    def model(self) -> nn.Module:
        """The module that holds the layers; the model itself where it holds them directly."""
        holder, _, rest = self.anatomy.layers_module.path.partition(".")
        return self._root.get_submodule(holder) if rest else self._root

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
        name = type(self._root).__name__
        facts = self.anatomy.layers[layer_index(layer, self.anatomy, name)]
        return require_part(facts, "mlp" if part == "mlp" else "attention", self.anatomy, name).module

    def _present(self, site: Site | None, what: str) -> nn.Module:
        if site is None:
            raise Unsupported(f"{type(self._root).__name__} has no {what}.")
        return site.module
