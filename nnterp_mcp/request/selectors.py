"""Which layers, heads, neurons, prompts and steps a request means."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.request.operations import IndexSpec

SHARED_PAIRS = 1000
"""Pairs of target categories that are searched for common first tokens."""


def resolve_layers(asked: str | int | Sequence[int], num_layers: int, name: str) -> list[int]:
    """Turns `all`, an integer, a list or a Python-style range into layer numbers, as `resolve_indices` does.

    Args:
        asked: As the caller wrote it; negative numbers count from the end.
        num_layers: Number of layers of the model.
        name: The model's name, for the error.
    """
    return resolve_indices(asked, num_layers, "layer", name)


def resolve_indices(asked: str | int | Sequence[int], count: int, noun: str, owner: str) -> list[int]:
    """Turns `all`, an integer, a list or a Python-style range into sorted indices.

    Args:
        asked: As the caller wrote it; negative numbers count from the end.
        count: Their number.
        noun: Their name, for the error.
        owner: Their owner, for the error.

    Returns:
        Indices from 0 to `count - 1`, in ascending order, each once.

    Raises:
        InvalidRequest: One does not exist, or the range holds none.
    """
    there = f"{owner} has {noun}s 0 to {count - 1}." if count else f"{owner} has no {noun}s."
    if isinstance(asked, str):
        chosen = sorted(range(count)[_slice(asked)])
        if not chosen:
            raise InvalidRequest(f"the range {asked!r} holds no {noun}: {there}")
        return chosen
    listed = [asked] if isinstance(asked, int) else list(asked)
    for index in listed:
        if not -count <= index < count:
            raise InvalidRequest(f"{noun} {index} does not exist: {there}")
    return sorted({index % count for index in listed})


def in_step(asked: IndexSpec) -> Callable[[int], bool]:
    """A test for the wanted decode steps; their total number is not known in advance."""
    if isinstance(asked, str):
        steps = range(sys.maxsize)[_slice(asked)]
        return lambda step: step in steps
    listed = {asked} if isinstance(asked, int) else set(asked)
    return lambda step: step in listed


def _slice(asked: str) -> slice:
    if asked == "all":
        return slice(None)
    return slice(*(int(part) if part.strip() else None for part in asked.split(":")))
