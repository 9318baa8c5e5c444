"""The states of a run of `collect_activations`, for calls that use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.request.sites import Site
from nnterp_mcp.request.vectors import ModelIdentity, ReadTokens
from nnterp_mcp.runs.records import RunRecord
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.toolset.collect_activations import SPEC
from nnterp_mcp.toolset.collect_activations.params import CollectActivationsParams
from nnterp_mcp.toolset.collect_activations.result import STATES, CollectActivationsResult

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Collected:
    """The states of one run, read from disk on demand.

    Attributes:
        result: Their index.
    """

    result: CollectActivationsResult
    _store: RunStore
    _record: RunRecord

    @property
    def run_id(self) -> str:
        """The run."""
        return self._record.id

    @property
    def site(self) -> Site:
        """Where they were read."""
        return self.result.site

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The run's prompts."""
        return self._prompts

    @cached_property
    def _prompts(self) -> list[Prompt]:
        return [prompt for of_group in self.groups.values() for prompt in of_group]

    @cached_property
    def _params(self) -> CollectActivationsParams:
        return SPEC.params.model_validate(self._record.params)

    @property
    def groups(self) -> dict[str, tuple[Prompt, ...]]:
        """The run's prompts by group."""
        return self._params.prompts

    @property
    def reading(self) -> ReadTokens:
        """The tokens whose states it kept."""
        return ReadTokens(positions=self._params.positions, pool=self._params.pool)

    @cached_property
    def _rows(self) -> dict[int, dict[int | None, int]]:
        rows: dict[int, dict[int | None, int]] = {}
        for row in self.result.rows:
            rows.setdefault(row.prompt, {})[row.position] = row.row
        return rows

    def sole(self, prompt: int) -> bool:
        """True if a prompt has a single state: pooled, or of one position."""
        return len(self._rows.get(prompt, {})) == 1

    def take(
        self, layer: int | None, prompt: int, positions: Sequence[int] | None
    ) -> Float[Tensor, "position *head width"]:
        """The states of a prompt after a layer; None for the positions takes its only one.

        Raises:
            InvalidRequest: The run did not keep them.
        """
        import numpy as np
        import torch

        place = self._place(layer)
        known = self._rows.get(prompt, {})
        asked: Sequence[int | None] = list(known)[:1] if positions is None else positions
        if not asked or any(at not in known for at in asked):
            raise self._missing(prompt, asked)
        parts = [self._read((slice(known[at], known[at] + 1), slice(place, place + 1))) for at in asked]
        return torch.from_numpy(np.concatenate(parts)[:, 0])

    def along(self, layer: int | None) -> Float[np.ndarray, "row *head width"]:
        """The states of every row that was read, after one layer.

        Raises:
            InvalidRequest: The run did not keep that layer.
        """
        place = self._place(layer)
        return self._read((slice(None), slice(place, place + 1)))[[row.row for row in self.result.rows], 0]

    def _read(self, index: tuple[Any, ...]) -> Float[np.ndarray, "row layer *head width"]:
        return self._store.read_array(self.run_id, STATES, index)

    def _place(self, layer: int | None) -> int:
        if layer not in self.result.layers:
            held = ", ".join(map(str, self.result.layers))
            raise InvalidRequest(f"{self.run_id} kept no states of layer {layer}: it has layers {held}.")
        return self.result.layers.index(layer)

    def _missing(self, prompt: int, asked: Sequence[int | None]) -> InvalidRequest:
        known = self._rows.get(prompt, {})
        if not known:
            return InvalidRequest(f"{self.run_id} kept no states of prompt {prompt}: it was stopped before.")
        if None in known:
            return InvalidRequest(
                f"{self.run_id} kept the mean over positions of prompt {prompt}, and none of them alone.",
                "Leave out from.position, or collect with pool='none'.",
            )
        absent = next(at for at in asked if at not in known)
        held = ", ".join(map(str, known))
        return InvalidRequest(f"{self.run_id} kept no state of prompt {prompt} at position {absent}: it has {held}.")


def find_collected(store: RunStore, run_id: str, identity: ModelIdentity, model: str) -> Collected:
    """The states of a run.

    Args:
        store: The runs.
        run_id: The run.
        identity: The model that they are to be used on.
        model: That model's handle, for errors.

    Raises:
        InvalidRequest: There is no such run, it has no states, or it belongs to other weights.
    """
    record = store.read(run_id)
    if record.tool != SPEC.name or STATES not in record.arrays:
        raise InvalidRequest(
            f"{run_id} is a run of {record.tool} that is {record.state}, and holds no states.",
            "Give the run_id of a collect_activations that is done.",
        )
    environment = record.environment
    if environment is None or environment.fingerprint != identity.fingerprint:
        weights = "unknown weights" if environment is None else f"weights {environment.fingerprint}"
        raise InvalidRequest(
            f"the states of {run_id} do not belong to {model} ({identity}): they are those of {record.model} "
            f"({weights}), and mean nothing to other weights.",
            "Collect them for this model with collect_activations.",
        )
    return Collected(SPEC.result.model_validate_json(store.read_result(record)), store, record)
