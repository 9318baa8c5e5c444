"""Dictionaries in a worker's memory: read when they are used, and dropped when others need the room."""

from __future__ import annotations

from collections.abc import Callable

from nnterp_mcp.errors import OutOfMemory
from nnterp_mcp.experiments.features.dictionary import Dictionary
from nnterp_mcp.formatting import size
from nnterp_mcp.model.memory import free
from nnterp_mcp.model.standardized import StandardizedTransformer

Held = tuple[str, int | None]
"""A handle and a layer."""

_SHARE = 0.5
"""The share of the free memory that dictionaries may take."""


class Shelf:
    """The dictionaries that were used last, those of the longest time ago first."""

    def __init__(self) -> None:
        self._dictionaries: dict[Held, Dictionary] = {}

    @property
    def nbytes(self) -> int:
        """The size of all of them."""
        return sum(made.nbytes for made in self._dictionaries.values())

    def take(self, key: Held, model: StandardizedTransformer, load: Callable[[], Dictionary]) -> Dictionary:
        """A dictionary on the model's device, read if it is not there.

        Args:
            key: Which.
            model: The model that it is used on.
            load: Reads it.

        Raises:
            OutOfMemory: It alone does not fit.
        """
        made = self._dictionaries.pop(key, None) or self._read(model, load)
        self._dictionaries[key] = made
        return made

    def drop(self, name: str) -> int:
        """Forgets the dictionaries of a handle, and returns the bytes that they took."""
        before = self.nbytes
        self._dictionaries = {key: made for key, made in self._dictionaries.items() if key[0] != name}
        return before - self.nbytes

    def _read(self, model: StandardizedTransformer, load: Callable[[], Dictionary]) -> Dictionary:
        made = load()
        while self._dictionaries and made.nbytes > _SHARE * free(model.device):
            self._dictionaries.pop(next(iter(self._dictionaries)))
        if made.nbytes > free(model.device):
            raise OutOfMemory(f"the dictionary takes {size(made.nbytes)}, and {size(free(model.device))} are free.")
        return made.moved(model.device)
