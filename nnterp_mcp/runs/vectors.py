"""Named steering vectors on disk: one safetensors file each, one folder for each model.

A vector belongs to the weights that it was made on. Its name, method and norms are in the file's header, which is read
without torch and without the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.vectors import ModelIdentity, VectorCard, check_name, is_name
from nnterp_mcp.runs.atomic_files import write_whole

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

_SUFFIX = ".safetensors"
_TENSOR = "directions"
_METADATA = "nnterp_mcp.vector"


@dataclass(frozen=True)
class StoredVector:
    """A vector with its numbers: for each of the card's layers, or for any, as many rows as it has dimensions."""

    card: VectorCard
    directions: Float[np.ndarray, "direction hidden"]


class VectorStore:
    """The vectors below one folder. Writes are atomic, so that any number of processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, card: VectorCard, directions: Float[np.ndarray, "direction hidden"]) -> VectorCard | None:
        """Saves a vector.

        Returns:
            The card of the vector that it replaces, if any.

        Raises:
            InvalidRequest: Another vector's name differs from this one only in capitals, which some disks mix up.
        """
        from safetensors.numpy import save

        near = [other.name for other in self.cards(card.identity) if other.name.casefold() == card.name.casefold()]
        if near and card.name not in near:
            raise InvalidRequest(
                f"{card.name!r} differs only in capitals from the vector {near[0]!r}.", "Choose another name."
            )
        path = self._path(card.name, card.identity)
        replaced = _read_card(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save({_TENSOR: directions.copy()}, {_METADATA: card.model_dump_json()}))
        return replaced

    def load(self, name: str, identity: ModelIdentity, model: str) -> StoredVector:
        """A vector with its numbers.

        Args:
            name: Its name.
            identity: The model that it is to be used on.
            model: That model's handle, for errors.

        Raises:
            InvalidRequest: The model has no such vector, or its file is damaged.
        """
        from safetensors.numpy import load

        card = self.find(name, identity, model)
        try:
            return StoredVector(card, load(self._path(name, identity).read_bytes())[_TENSOR])
        except (OSError, KeyError, SafetensorError):
            raise _damaged(name) from None

    def find(self, name: str, identity: ModelIdentity, model: str) -> VectorCard:
        """A vector's card.

        Raises:
            InvalidRequest: The model has no such vector, or its file is damaged.
        """
        path = self._path(_require_name(name), identity)
        card = _read_card(path)
        if card is None and path.exists():
            raise _damaged(name)
        if card is None:
            raise self._unknown(name, identity, model)
        return card

    def delete(self, name: str, identity: ModelIdentity, model: str) -> VectorCard:
        """Removes a vector.

        Raises:
            InvalidRequest: The model has no such vector.
        """
        card = self.find(name, identity, model)
        self._path(name, identity).unlink(missing_ok=True)
        return card

    def cards(self, identity: ModelIdentity | None = None) -> list[VectorCard]:
        """The cards of every vector, or of one model's, the newest first; damaged files are passed over."""
        folders = [self._folder / identity.folder] if identity else sorted(self._folder.glob("*"))
        cards = [card for folder in folders for path in _files(folder) if (card := _read_card(path)) is not None]
        return sorted(cards, key=lambda card: card.made, reverse=True)

    def _path(self, name: str, identity: ModelIdentity) -> Path:
        return self._folder / identity.folder / f"{name}{_SUFFIX}"

    def _unknown(self, name: str, identity: ModelIdentity, model: str) -> InvalidRequest:
        elsewhere = [card for card in self.cards() if card.name == name]
        if elsewhere:
            other = elsewhere[0]
            return InvalidRequest(
                f"the vector {name!r} does not belong to {model} ({identity}): it was made on {other.model} "
                f"({other.identity}), and means nothing to other weights.",
                "Make it for this model with make_vector.",
                "A client makes it for this model with the tool make_vector.",
            )
        names = [card.name for card in self.cards(identity)]
        known = "its vectors are " + shown(", ".join(names), 200).strip("'") if names else "it has none"
        return InvalidRequest(
            f"{model} has no vector {shown(name)}: {known}.",
            "Make it with make_vector.",
            "A client makes it with the tool make_vector.",
        )


def _damaged(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"the file of the vector {name!r} is damaged.",
        "Make it again with make_vector.",
        "A client makes it again with the tool make_vector.",
    )


def _require_name(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise InvalidRequest(f"{error}.") from None


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.glob(f"*{_SUFFIX}") if is_name(path.name.removesuffix(_SUFFIX)))


def _read_card(path: Path) -> VectorCard | None:
    try:
        with safe_open(path, framework="numpy") as source:
            return VectorCard.model_validate_json(source.metadata()[_METADATA])
    except (OSError, SafetensorError, TypeError, KeyError, ValidationError):
        return None
