"""Arrays that are filled row by row, in any order, on disk or in memory.

On disk an array may be larger than the memory. It is a safetensors file, under a temporary name until it is closed, so
that readers find all of it or nothing.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.runs.records import ArrayCard

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

TENSOR = "array"
"""The name of the one tensor in an array's file."""

_ALIGNMENT = 8


class Rows(Protocol):
    """An array of float32 whose first axis is filled row by row. Missing rows are NaN."""

    def put(self, numbers: Sequence[int], states: Float[np.ndarray, "row ..."]) -> None:
        """Writes some rows.

        Raises:
            LimitExceeded: The disk is full.
        """
        ...

    def along(self, place: int) -> Float[np.ndarray, "row ..."]:
        """All rows, at one place along the second axis."""
        ...


class HeldRows:
    """Rows in memory.

    Attributes:
        numbers: The array.
    """

    def __init__(self, axes: Mapping[str, Sequence[int | str]]) -> None:
        import numpy as np

        self.numbers = np.full([len(labels) for labels in axes.values()], np.nan, dtype=np.float32)

    def put(self, numbers: Sequence[int], states: Float[np.ndarray, "row ..."]) -> None:
        """Writes some rows."""
        self.numbers[list(numbers)] = states

    def along(self, place: int) -> Float[np.ndarray, "row ..."]:
        """All rows, at one place along the second axis."""
        return self.numbers[:, place]


class FileRows:
    """Rows in a file.

    Attributes:
        card: The array's dtype, shape and axes.
    """

    def __init__(self, path: Path, axes: Mapping[str, Sequence[int | str]]) -> None:
        """Begins the file.

        Raises:
            LimitExceeded: It cannot be written.
        """
        shape = [len(labels) for labels in axes.values()]
        self.card = ArrayCard(dtype="float32", shape=shape, axes={axis: list(of) for axis, of in axes.items()})
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._missing = set(range(shape[0]))
        self._row_bytes = 4 * math.prod(shape[1:])
        header = _header(self.card)
        self._begin = len(header)
        try:
            self._file = self._part.open("w+b")
            self._file.write(header)
            self._file.truncate(self._begin + shape[0] * self._row_bytes)
        except OSError as error:
            raise _full(error) from error

    def put(self, numbers: Sequence[int], states: Float[np.ndarray, "row ..."]) -> None:
        """Writes some rows.

        Raises:
            LimitExceeded: The disk is full.
        """
        import numpy as np

        # Written and not mapped: on a mapped file a full disk kills the process.
        try:
            for number, row in zip(numbers, np.asarray(states, dtype="<f4", order="C"), strict=True):
                self._file.seek(self._begin + number * self._row_bytes)
                self._file.write(row.tobytes())
                self._missing.discard(number)
        except OSError as error:
            raise _full(error) from error

    def along(self, place: int) -> Float[np.ndarray, "row ..."]:
        """All rows, at one place along the second axis."""
        import numpy as np

        self._file.flush()
        whole = np.memmap(self._part, dtype="<f4", mode="r", offset=self._begin, shape=tuple(self.card.shape))
        return np.array(whole[:, place])

    def close(self) -> ArrayCard:
        """Completes the file and gives it its final name.

        Raises:
            LimitExceeded: The disk is full.
            OSError: It cannot be written.
        """
        import numpy as np

        nothing = np.full((1, self._row_bytes // 4), np.nan, dtype="<f4")
        for number in sorted(self._missing):
            self.put([number], nothing)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self._path)
        return self.card

    def abandon(self) -> None:
        """Removes the file."""
        self._file.close()
        self._part.unlink(missing_ok=True)


def _header(card: ArrayCard) -> bytes:
    """The header of a safetensors file: its length, then JSON, padded with spaces."""
    facts = {
        "__metadata__": {"axes": json.dumps(card.axes)},
        TENSOR: {"dtype": "F32", "shape": card.shape, "data_offsets": [0, 4 * math.prod(card.shape)]},
    }
    text = json.dumps(facts).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _full(error: OSError) -> LimitExceeded:
    return LimitExceeded(
        f"the states cannot be kept: {os.strerror(error.errno or 0)}",
        "Choose fewer layers, positions or prompts, or make room for runs.",
    )
