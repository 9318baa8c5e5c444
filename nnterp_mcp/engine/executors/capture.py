"""CUDA graphs: the launches of a function, captured once and replayed without the host's work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.wrapped import WrappedModel

logger = logging.getLogger(__name__)

T = TypeVar("T")

_REFUSED: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()
"""Why something of a model could not be captured, by what it is."""


class LaunchGraph(Generic[T]):
    """The launches of a function, which reads and writes the same memory at each replay.

    Args:
        compute: The function. What is lazy in a first run must have happened before.
        pool: The memory that graphs of one model share, of which only one is used at a time; its own by default.
    """

    def __init__(self, compute: Callable[[], T], pool: Any = None) -> None:
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._made = compute()

    def replay(self) -> T:
        """Computes the function's result anew; the next replay overwrites it."""
        self._graph.replay()
        return self._made


def captures(model: WrappedModel, what: str) -> bool:
    """True where graphs can be captured on the model's device, and none was refused.

    Args:
        model: The model.
        what: What is captured, as `session` names it.
    """
    one_device = len(set(getattr(model.module, "hf_device_map", {}).values())) <= 1
    return model.device.type == "cuda" and one_device and what not in _REFUSED.get(model.module, {})


def try_capture(model: WrappedModel, what: str, make: Callable[[], T]) -> T | None:
    """Captures something, and returns None where the modelling code cannot be captured, which is remembered.

    Code that waits for the device, or makes tensors on the host, cannot.

    Raises:
        torch.OutOfMemoryError: Memory ran out.
    """
    try:
        return make()
    except Exception as error:
        if says_nothing(error):
            raise
        refuse(model, what, str(error))
        return None


def refuse(model: WrappedModel, what: str, reason: str) -> None:
    """Remembers why something of a model is not replayed."""
    _REFUSED.setdefault(model.module, {})[what] = (reason.splitlines() or ["no reason given"])[0]
    logger.warning("%s of %s are not replayed as graphs: %s", what, model.name, reason)


def reasons_against(model: WrappedModel) -> dict[str, str]:
    """The parts of a model that are not replayed as graphs, each with the reason."""
    return dict(_REFUSED.get(model.module, {}))
