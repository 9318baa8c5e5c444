"""States that an earlier run kept, as patches look them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.request.sites import Site


class KeptStates(Protocol):
    """The states of one run."""

    @property
    def run_id(self) -> str:
        """The run."""
        ...

    @property
    def site(self) -> Site:
        """Where they were read."""
        ...

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The run's prompts."""
        ...

    def sole(self, prompt: int) -> bool:
        """True where a prompt has a single state, pooled or at one position."""
        ...

    def take(
        self, layer: int | None, prompt: int, positions: Sequence[int] | None
    ) -> Float[Tensor, "position *head width"]:
        """The states of a prompt after a layer; None for the positions takes its only one.

        Raises:
            InvalidRequest: The run did not keep them.
        """
        ...


FindStates = Callable[[str], KeptStates]
"""Finds the states of a run by its id."""
