"""Functions of the engine that a served model replaces by remote calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from nnterp_mcp.model.standardized import StandardizedTransformer

P = ParamSpec("P")
R = TypeVar("R")


def executed_remotely(
    local: Callable[Concatenate[StandardizedTransformer, P], R],
) -> Callable[Concatenate[StandardizedTransformer, P], R]:
    """Lets a served model run a function in its own way: `model.remote_calls` has it under the function's name.

    Arguments and result are the same wherever it runs. A served model refuses by name what it cannot do.
    """

    @wraps(local)
    def run(model: StandardizedTransformer, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return model.remote_calls.get(local.__name__, local)(model, *args, **kwargs)

    return run
