"""Named prompt sets on disk, one JSON file each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from nnterp_mcp.errors import InvalidRequest, LimitExceeded
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.named_sets import NamedSet
from nnterp_mcp.request.vectors import check_name, is_name
from nnterp_mcp.runs.atomic_files import write_whole

_SUFFIX = ".json"
_MOST = 1000
"""Sets that are stored at once."""


@dataclass(frozen=True)
class PromptSetStore:
    """The prompt sets below one folder. Writes are atomic, so that any number of processes may share it."""

    folder: Path

    def save(self, named: NamedSet) -> bool:
        """Saves a set; true if it replaces one of that name.

        Raises:
            InvalidRequest: Another set's name differs from this one only in capitals, which some disks mix up.
            LimitExceeded: There are too many sets, or the disk does not take it.
        """
        names = self._names()
        near = [name for name in names if name.casefold() == named.name.casefold()]
        if near and named.name not in near:
            raise InvalidRequest(f"{named.name!r} differs only in capitals from the set {near[0]!r}.")
        if len(names) >= _MOST and not near:
            raise LimitExceeded(f"{_MOST} prompt sets are stored already.", "Delete some: session delete_set=NAME.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(named.name), named.model_dump_json().encode())
        except OSError as error:
            raise LimitExceeded(f"the set {named.name!r} cannot be written: {error.strerror}.") from error
        return bool(near)

    def find(self, name: str) -> NamedSet:
        """A set.

        Raises:
            InvalidRequest: There is no such set, or its file is damaged.
        """
        try:
            return NamedSet.model_validate_json(self._path(check_name(name)).read_bytes())
        except FileNotFoundError:
            names = ", ".join(self._names())
            known = f"the sets are {shown(names, 200).strip(chr(39))}" if names else "there are none"
            raise InvalidRequest(
                f"there is no prompt set {shown(name)}: {known}.", "Save one: session save_set=NAME prompts=[...]."
            ) from None
        except (OSError, ValidationError):
            raise InvalidRequest(f"the file of the prompt set {name!r} is damaged.", "Save it again.") from None
        except ValueError as error:
            raise InvalidRequest(f"{error}.") from None

    def delete(self, name: str) -> None:
        """Removes a set.

        Raises:
            InvalidRequest: There is no such set.
        """
        self.find(name)
        self._path(name).unlink(missing_ok=True)

    def sets(self) -> list[NamedSet]:
        """Every set, the newest first; damaged files are passed over."""
        found: list[NamedSet] = []
        for name in self._names():
            try:
                found.append(self.find(name))
            except InvalidRequest:
                continue
        return sorted(found, key=lambda named: named.made, reverse=True)

    def _names(self) -> list[str]:
        names = (path.name.removesuffix(_SUFFIX) for path in sorted(self.folder.glob(f"*{_SUFFIX}")))
        return [name for name in names if is_name(name)]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"
