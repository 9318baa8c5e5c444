"""How far back the queries of a layer read: everything before them, a sliding window, or their chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn

_WINDOWS = {
    "sliding_attention": "sliding_window",
    "hybrid_sliding": "sliding_window",
    "reference_sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
    "local": "window_size",
    "attention": "attention_window_size",
}
"""transformers' names of layers with limited attention, and the configuration field of their size."""


_UNNAMED = ("sliding_attention", "chunked_attention")
"""Kinds of layers of a configuration that gives a size but no kinds, as transformers' cache infers them."""

_KINDS = ("layer_types", "attention_layers", "block_types", "layers_block_type")
"""Where configurations name the kind of each layer."""


@dataclass(frozen=True)
class Horizon:
    """The earlier tokens that a query reads.

    Attributes:
        size: Tokens in a window, the query's own counted, or in a chunk; None for all of them.
        chunked: True if tokens are read in chunks that restart at every multiple of the size.
    """

    size: int | None = None
    chunked: bool = False

    def first(self, query: Int[Tensor, "*query"]) -> Int[Tensor, "*query"]:
        """The first position that each query reads."""
        if self.size is None:
            return query * 0
        return query - query % self.size if self.chunked else (query - self.size + 1).clamp_min(0)

    def reaches(self, query: Int[Tensor, "*#pair"], key: Int[Tensor, "*#pair"]) -> Bool[Tensor, "*#pair"]:
        """True where a query reads a key; positions below 0 are padding."""
        return (key >= 0) & (key >= self.first(query)) & (key <= query)


EVERYTHING = Horizon()
"""All that came before."""


def find_horizon(model: Any, index: int, layer: nn.Module) -> Horizon:
    """The horizon of a layer, as the configuration of its attention has it for masks and cache."""
    own = (getattr(module, "config", None) for module in layer.modules())
    config = next((found for found in own if found is not None), model.config.get_text_config(decoder=True))
    kinds = next((found for name in _KINDS if isinstance(found := getattr(config, name, None), list | tuple)), None)
    if kinds is None:
        kind = next((kind for kind in _UNNAMED if getattr(config, _WINDOWS[kind], None) is not None), "")
    else:
        kind = str(kinds[index]) if index < len(kinds) else ""
    size = getattr(config, _WINDOWS.get(kind, ""), None)
    return Horizon(size, kind == "chunked_attention") if isinstance(size, int) else EVERYTHING
