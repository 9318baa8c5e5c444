"""A second tree of a model's modules on the same weights, so that two models take little more memory than one."""

from __future__ import annotations

import copy
from typing import TypeVar

from nnsight.intervention.source import STATE
from torch import nn

_M = TypeVar("_M", bound=nn.Module)

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_OF_WRAPPER = ("forward", STATE)
"""Attributes that nnsight writes onto a module that it wraps."""


def share_weights(model: _M) -> _M:
    """Copies a model without its weights: parameters and buffers are the same tensors, modules and configuration new.

    Hooks, and what nnsight wrote onto the modules, are left out.

    Args:
        model: The model; one that accelerate spread over several devices cannot be copied so.
    """
    memo: dict[int, object] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        own = vars(module)
        memo |= {id(own[name]): None for name in _OF_WRAPPER if name in own}
        memo |= {id(own[name]): type(own[name])() for name in _HOOKS if own.get(name)}
    made = copy.deepcopy(model, memo)
    for module in made.modules():
        for name in _OF_WRAPPER:
            vars(module).pop(name, None)
    return made
