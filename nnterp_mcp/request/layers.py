"""Which layers a request means."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.errors import InvalidRequest


def resolve_layers(asked: str | int | Sequence[int], num_layers: int, name: str) -> list[int]:
    """Turns `all`, an integer, a list or a Python-style range into sorted indices.

    Args:
        asked: What a caller asked for; negative numbers count from the end.
        num_layers: How many layers the model has.
        name: The model's name, for the error.

    Returns:
        Indices from 0 to `num_layers - 1`, in ascending order, each once.

    Raises:
        InvalidRequest: A layer does not exist, or the range holds none.
    """
    if isinstance(asked, str):
        chosen = list(range(num_layers)) if asked == "all" else _slice(asked, num_layers)
        if not chosen:
            raise InvalidRequest(f"the range {asked!r} holds no layer: {name} has layers 0 to {num_layers - 1}.")
        return chosen
    listed = [asked] if isinstance(asked, int) else list(asked)
    for layer in listed:
        if not -num_layers <= layer < num_layers:
            raise InvalidRequest(f"layer {layer} does not exist: {name} has layers 0 to {num_layers - 1}.")
    return sorted({layer % num_layers for layer in listed})


def _slice(text: str, length: int) -> list[int]:
    parts = [int(part) if part.strip() else None for part in text.split(":")]
    return sorted(range(length)[slice(*parts)])
