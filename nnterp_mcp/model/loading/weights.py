"""The dtype and quantization of weights, and the devices that have room for them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from accelerate.utils import get_max_memory

from nnterp_mcp.errors import OutOfMemory, Unsupported
from nnterp_mcp.formatting import size
from nnterp_mcp.model import memory


@dataclass(frozen=True)
class Precision:
    """The dtype and quantization of the weights, as `load_model` takes them."""

    dtype: str = "auto"
    quantization: str | None = None

    def type_on(self, device: torch.device, config: Any) -> torch.dtype:
        """The dtype on a device: `auto` is float32 on a CPU, and the checkpoint's own on an accelerator."""
        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        if device.type == "cpu":
            return torch.float32
        kept = getattr(config, "dtype", None) or torch.float32
        return getattr(torch, kept) if isinstance(kept, str) else kept


def quantize(kind: str, dtype: torch.dtype) -> Any:
    """The configuration with which transformers quantizes weights while it reads them.

    Raises:
        Unsupported: Its library is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise Unsupported(
            f"quantization {kind!r} needs bitsandbytes, which is not installed",
            "Run: pip install bitsandbytes, or leave quantization out.",
        )
    if kind == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)


def fit(need: int, device: torch.device, origin: str) -> Any:
    """A device map: the device if the weights fit it, all devices together if they fit those.

    Raises:
        OutOfMemory: They fit neither.
    """
    free = memory.free(device)
    if need <= free:
        return {"": device}
    everywhere = sum(get_max_memory().values())
    if device.type != "cpu" and need <= everywhere:
        return "auto"
    raise OutOfMemory(
        f"the weights of {origin} need {size(need)}, and {size(max(free, everywhere))} are free",
        "Load it with dtype 'bfloat16' or quantization, unload another model, or choose a smaller one.",
    )
