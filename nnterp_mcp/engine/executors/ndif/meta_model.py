"""A model without its weights: what its code does to shapes, from its configuration alone."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.structure.call_recorder import PROBE_TOKENS, probe_ids


def build_outline(config: Any, code: bool) -> PreTrainedModel:
    """A model of this configuration on the meta device, attending eagerly.

    Raises:
        Unsupported: transformers cannot build it.
    """
    try:
        with torch.device("meta"):
            # A copy, for what is built from a configuration writes to it.
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), attn_implementation="eager", trust_remote_code=code
            )
    except (ValueError, ImportError, KeyError, AttributeError) as error:
        raise Unsupported(f"transformers cannot build this model without its weights: {error}") from error
    return model.eval().requires_grad_(False)


class _WithoutNumbers(TorchFunctionMode):
    """Lets code that looks at numbers go on where there are none: it takes the way that makes no exception."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.is_meta:
            if func in (Tensor.__bool__, Tensor.__contains__, Tensor.is_nonzero, Tensor.item):
                return False
            if func in (torch.equal, torch.allclose):
                return first.shape == args[1].shape
        return func(*args, **(kwargs or {}))


@contextmanager
def without_numbers() -> Generator[None]:
    """While this lasts, a model on the meta device can be run and resolved.

    Whether two states are equal cannot be told there: a model in which something unseen lies between the parts that
    have names passes, and the check that runs on the served model finds it.
    """
    with _WithoutNumbers():
        yield


def find_patterns(model: PreTrainedModel, cores: dict[int, nn.Module], heads: dict[int, int]) -> dict[int, int]:
    """Which element of what each layer's attention returns is its probabilities; layers without one are missing.

    Args:
        model: An outline.
        cores: The module of each layer that attends.
        heads: The number of its heads.
    """
    found: dict[int, int] = {}

    def look(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            items: tuple[Any, ...] = output if isinstance(output, tuple) else ()
            for at, item in enumerate(items):
                if getattr(item, "shape", None) == (1, heads[layer], PROBE_TOKENS, PROBE_TOKENS):
                    found[layer] = at

        return hook

    with ExitStack() as stack, torch.no_grad(), without_numbers():
        for layer, core in cores.items():
            stack.enter_context(core.register_forward_hook(look(layer)))
        model(input_ids=probe_ids(model), use_cache=False)
    return found
