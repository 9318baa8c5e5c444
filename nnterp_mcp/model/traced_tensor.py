"""The type of a value in a trace, for type checkers: nnsight gives every object a `save`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:

    class TracedTensor(Tensor):
        """A tensor that a trace hands out; what is not saved is gone when the trace ends."""

        def save(self) -> Tensor:
            """Keeps the value beyond the trace."""
            ...

else:
    TracedTensor = Tensor
