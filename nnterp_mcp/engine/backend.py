"""Experiments that a model which computes on another machine runs in its own way."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from nnterp_mcp.model.standardized import StandardizedTransformer

P = ParamSpec("P")
R = TypeVar("R")
Experiment = Callable[Concatenate[StandardizedTransformer, P], R]


def runs_elsewhere(local: Experiment[P, R]) -> Experiment[P, R]:
    """Lets a model bring its own way to run an experiment, under the experiment's name (`model.elsewhere`).

    The arguments and the result are the same wherever it runs. What such a model has no way for ends where it would
    compute, in a refusal by name.
    """

    @wraps(local)
    def run(model: StandardizedTransformer, /, *args: P.args, **kwargs: P.kwargs) -> R:
        own = model.elsewhere.get(local.__name__)
        return local(model, *args, **kwargs) if own is None else own(model, *args, **kwargs)

    return run
