"""Cards of loaded dictionaries on disk, one folder for each model; the numbers stay where they are published."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.dictionaries import DictionaryCard
from nnterp_mcp.request.vectors import ModelIdentity, is_name
from nnterp_mcp.runs.atomic_files import write_whole


class DictionaryStore:
    """The cards below one folder. Writes are atomic, so that any number of processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, card: DictionaryCard) -> None:
        """Saves a card, in the place of another of its name."""
        path = self._path(card.name, card.identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, card.model_dump_json().encode())

    def cards(self) -> list[DictionaryCard]:
        """All cards, of every model."""
        found = (_read(path) for path in sorted(self._folder.glob("*/*.json")))
        return [card for card in found if card is not None]

    def find(self, name: str, identity: ModelIdentity, model: str) -> DictionaryCard:
        """The card of a model's dictionary.

        Args:
            name: Its name.
            identity: The model.
            model: The model's handle, for errors.

        Raises:
            InvalidRequest: The model has no such dictionary.
        """
        card = _read(self._path(name, identity)) if is_name(name) else None
        if card is None:
            names = sorted(path.stem for path in (self._folder / identity.folder).glob("*.json"))
            known = f"it has {', '.join(names)}" if names else "it has none"
            raise InvalidRequest(f"{model} has no dictionary {shown(name)}: {known}.", "Load it with load_features.")
        return card

    def delete(self, name: str, identity: ModelIdentity, model: str) -> None:
        """Deletes a card; the files of the dictionaries stay.

        Raises:
            InvalidRequest: The model has no such dictionary.
        """
        self.find(name, identity, model)
        self._path(name, identity).unlink(missing_ok=True)

    def _path(self, name: str, identity: ModelIdentity) -> Path:
        return self._folder / identity.folder / f"{name}.json"


def _read(path: Path) -> DictionaryCard | None:
    try:
        return DictionaryCard.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
