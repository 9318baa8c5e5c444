"""Plain transformers with plain PyTorch hooks: the reference for our own code, which shares nothing with it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

Ids = Int[Tensor, "batch position"]
Stream = Float[Tensor, "batch position hidden"]
Probabilities = Float[Tensor, "batch head query key"]


class DiffersError(AssertionError):
    """Two numbers that must be equal are not."""


@torch.no_grad()
def run_plain(model: nn.Module, ids: Ids, **options: Any) -> Any:
    """One forward pass, as transformers documents it."""
    return model(input_ids=ids, use_cache=False, **options)


def replacing_output(module: nn.Module, change: Callable[[Stream], Stream]) -> RemovableHandle:
    """A forward hook that changes the hidden states that a module returns."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return change(output)
        place = next(i for i, item in enumerate(output) if isinstance(item, Tensor) and item.is_floating_point())
        return type(output)([*output[:place], change(output[place]), *output[place + 1 :]])

    return module.register_forward_hook(hook)


@contextmanager
def capturing_output(modules: Sequence[nn.Module], into: dict[int, Stream]) -> Generator[None]:
    """Forward hooks that copy the hidden states that modules return, by their place in the list."""
    with ExitStack() as stack:
        for index, module in enumerate(modules):

            def keep(states: Stream, index: int = index) -> Stream:
                into[index] = states.clone()
                return states

            stack.enter_context(replacing_output(module, keep))
        yield


def replacing_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """A forward pre-hook that changes the first positional input of a module."""
    return module.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))


@contextmanager
def replacing_softmax(
    blocks: Sequence[nn.Module], length: int, change: Callable[[int, Probabilities], Probabilities]
) -> Generator[None]:
    """PyTorch's softmax replaced: inside block i, results (…, query, key or more) go through `change(i, …)`.

    Only results that have one row for each position and at least as many columns, per head, are attention's.
    """
    running: list[int] = []

    def enter(index: int) -> Callable[..., None]:
        return lambda *_: running.append(index)

    def leave(*_: Any) -> None:
        running.pop()

    def replaced(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def softmax(*args: Any, **kwargs: Any) -> Tensor:
            result = plain(*args, **kwargs)
            attends = result.ndim >= 3 and result.shape[-2] == length <= result.shape[-1]
            return change(running[-1], result) if running and attends else result

        return softmax

    places: list[tuple[Any, str]] = [(functional, "softmax"), (torch, "softmax"), (Tensor, "softmax")]
    originals = [getattr(owner, name) for owner, name in places]
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(enter(index), prepend=True).remove)
            stack.callback(block.register_forward_hook(leave).remove)
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, replaced(original))
            stack.callback(setattr, owner, name, original)
        yield
