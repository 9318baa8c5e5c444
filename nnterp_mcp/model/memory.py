"""How much memory a model's weights need, and how much there is. All in bytes."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from transformers import PreTrainedModel

from nnterp_mcp.errors import STOPS, NnterpError, OutOfMemory
from nnterp_mcp.request.model_folder import count_numbers, weight_files

_STATES = 8
"""Tensors of the size of the residual stream that exist at a time in a layer: queries, keys, values, norms."""

_PATTERNS = 4
"""Tensors of the size of an attention pattern that exist at a time."""

RAN_OUT = "out of memory|can't allocate memory|not enough memory|bad_alloc|STATUS_ALLOC_FAILED|DEVMEM Allocation failed"
"""The words of errors without a class of their own when memory ran out: torch's on a CPU, and vendors' libraries'."""

_STORED_BITS = {"8bit": 8, "4bit": 4.5}


def of_weights(folder: Path, dtype: torch.dtype, quantization: str | None = None) -> int:
    """Bytes that a folder's safetensors weights take as `dtype`; 0 if there are none.

    Only the files that transformers reads are counted.

    Raises:
        UnknownModel: A file is cut short, or not what its name says.
    """
    return of_numbers(sum(count_numbers(file) for file in weight_files(folder) if file.exists()), dtype, quantization)


def of_numbers(count: int, dtype: torch.dtype, quantization: str | None = None) -> int:
    """Bytes that so many numbers take as weights."""
    bits = _STORED_BITS.get(quantization or "", dtype.itemsize * 8)
    return int(count * bits / 8)


class Sized(Protocol):
    """A model, and the sizes of it that a forward pass's memory depends on."""

    @property
    def module(self) -> PreTrainedModel:
        """The Hugging Face model."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        ...

    @property
    def num_heads(self) -> int:
        """Attention heads of a layer."""
        ...

    @property
    def num_layers(self) -> int:
        """Layers."""
        ...


def of_pass(model: Sized, rows: int, columns: int, patterns: bool, layers: int = 1) -> int:
    """An upper bound, from shapes alone, of the bytes that a forward pass needs in addition to the weights.

    It covers the widest point of a layer, the attention mask, and a layer's attention scores and probabilities where
    they are formed.

    Args:
        rows: Prompts in the batch.
        columns: Tokens of each.
        patterns: True if attention probabilities are formed.
        layers: Layers whose activations exist at a time: 1, or all where autograd keeps them for the backward pass.
    """
    size = model.module.dtype.itemsize
    config = model.module.config.get_text_config()
    widest = max(_largest(config, "intermediate_size"), 4 * model.hidden_size)
    states = rows * columns * size * (_STATES * model.hidden_size + 3 * widest)
    formed = _PATTERNS * model.num_heads * max(size, 4) * layers if patterns else 0
    return states * layers + rows * columns**2 * (size + formed)


def of_cached_token(model: Sized) -> int:
    """An upper bound of the bytes that the keys and values of one token take in all layers."""
    config = model.module.config.get_text_config()
    heads = _largest(config, "num_key_value_heads") or max(1, model.num_heads)
    widths = [_largest(config, name) for name in ("head_dim", "qk_head_dim", "v_head_dim")]
    width = max(widths) or model.hidden_size // max(1, model.num_heads)
    return 2 * model.num_layers * heads * width * model.module.dtype.itemsize


def _largest(config: Any, name: str) -> int:
    """A size in a configuration; the largest where its layers differ."""
    try:
        size = getattr(config, name, None)
    except RuntimeError:  # transformers refuses to give one size where each layer has its own
        size = [getattr(layer, name, None) for layer in config.per_layer_config]
    sizes = size if isinstance(size, list | tuple) else [size]
    return max((one for one in sizes if isinstance(one, int)), default=0)


def is_out_of_memory(error: BaseException) -> bool:
    """True for errors that mean that an accelerator or the host ran out of memory."""
    if isinstance(error, NnterpError):
        return isinstance(error, OutOfMemory)
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and re.search(RAN_OUT, str(error)) is not None


def says_nothing(error: BaseException) -> bool:
    """True for errors that say nothing about the model under test: a stopped call, or memory that ran out."""
    return isinstance(error, STOPS) or is_out_of_memory(error)


def free(device: torch.device) -> int:
    """Bytes free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
