"""Which code computes attention: asking, and switching on a loaded model, without a second copy of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.structure.call_recorder import Tape, probe


def current_attention(model: Any) -> str:
    """The attention implementation of the part that reads text: `eager`, `sdpa`, …."""
    return str(getattr(_text_config(model), "_attn_implementation", None) or "eager")


def switch_attention(model: Any, implementation: str) -> bool:
    """Set a loaded model's attention implementation.

    transformers switches models that look their implementation up at each call. Older modelling code reads it
    off the configuration instead; there the configuration is set, and it is for the probe to show that it
    took.

    Returns:
        Whether transformers itself made the switch.

    Raises:
        Unsupported: transformers has no such path for this architecture.
    """
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, ImportError) as error:
        raise Unsupported(f"{type(model).__name__} has no {implementation} attention: {error}") from error
    if current_attention(model) == implementation:
        return True
    for config in _configs(model):
        config._attn_implementation_internal = implementation
    return False


def probe_eagerly(model: Any) -> Tape:
    """Probe with eager attention where there is such a path, and leave the model as it was.

    Where eager attention raises, or where the switch was not transformers' own and gives other logits, the tape is
    that of the model's own choice.
    """
    before = current_attention(model)
    if before == "eager":
        return probe(model)
    try:
        trusted = switch_attention(model, "eager")
        tape = probe(model)
    except Exception as error:
        if says_nothing(error):
            raise
        tape, trusted = None, False
    finally:
        switch_attention(model, before)
    if tape is not None and trusted:
        return tape
    plain = probe(model)
    return tape if tape is not None and _agree(tape.logits, plain.logits) else plain


def _agree(one: Tensor, other: Tensor) -> bool:
    allowed = 8 * torch.finfo(other.dtype).eps ** 0.5 * float(other.float().abs().max())
    return math.isfinite(allowed) and torch.allclose(one.float(), other.float(), rtol=0, atol=allowed)


def _text_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


def _configs(model: Any) -> Iterator[Any]:
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and id(config) not in seen and hasattr(config, "_attn_implementation_internal"):
            seen.add(id(config))
            yield config
