"""Collects states for `collect_activations` and `train_probe`: a request resolved against a model and its limits."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.experiments.activations import Row, RowPooling, collect, index_rows, state_shape
from nnterp_mcp.formatting import size
from nnterp_mcp.request.operations import Operation
from nnterp_mcp.request.positions import LayerSpec, PositionSpec
from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.request.sites import Site
from nnterp_mcp.runs.arrays import Rows
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_FLOAT = 4
"""Bytes of a number."""


@dataclass(frozen=True)
class Collection:
    """States to be read at one site of some layers.

    Attributes:
        bench: The model and the limits.
        work: The prompts, with the operations on them.
        groups: The group of each prompt.
        rows: The rows.
        places: Where, one place a layer.
        shape: The shape of one state.
    """

    bench: Bench
    work: Workload
    groups: list[str]
    rows: list[Row]
    places: list[Place]
    shape: tuple[int, ...]

    @property
    def layers(self) -> list[int | None]:
        """The layers; None for the embeddings."""
        return [place.layer for place in self.places]

    @property
    def bytes(self) -> int:
        """Size of all states."""
        return _FLOAT * len(self.rows) * len(self.places) * math.prod(self.shape)

    @property
    def axes(self) -> dict[str, Sequence[int | str]]:
        """The labels along the axes of the states."""
        names = ["neuron"] if len(self.shape) == 1 else ["head", "neuron"]
        return {
            "row": range(len(self.rows)),
            "layer": ["embeddings" if layer is None else layer for layer in self.layers],
            **{name: range(count) for name, count in zip(names, self.shape, strict=True)},
        }

    def read(self, into: Rows, finished: list[int]) -> list[Float[Tensor, "position layer"]]:
        """Reads every row, batch by batch.

        Args:
            into: Where the states go.
            finished: Numbers of the rows that were read, extended after each batch.

        Returns:
            For each row the norms of the states that it is the mean of.
        """
        norms: dict[int, Tensor] = {}
        for found in collect(self.bench.model, self.work, self.rows, self.places):
            into.put(found.rows, found.states.numpy())
            finished += found.rows
            norms |= dict(zip(found.rows, found.norms, strict=True))
        return [norms[row] for row in range(len(self.rows))]


def prepare(
    bench: Bench,
    groups: Mapping[str, Sequence[Prompt]],
    site: Site,
    layers: LayerSpec,
    positions: Sequence[PositionSpec],
    pool: RowPooling,
    interventions: Sequence[Operation],
    job: Job,
    *,
    averaged: bool = False,
) -> Collection:
    """Resolves a request.

    Args:
        bench: The model and the limits.
        groups: The prompts by group.
        site: The site.
        layers: The layers.
        positions: The positions of each prompt.
        pool: How several positions of a prompt are combined.
        interventions: The operations on the prompts.
        job: The call.
        averaged: Rows are averaged later: `all` leaves out each prompt's first token.

    Raises:
        InvalidRequest: A layer, a position or a prompt does not exist or fit.
        LimitExceeded: There are too many prompts, or the states would take too many bytes.
        Unsupported: The model does not have the site.
    """
    prompts = bench.encode([prompt for of_group in groups.values() for prompt in of_group])
    resolved = [None] if site == "token_embeddings" else resolve_layers(layers, bench.model.num_layers, bench.handle)
    places = [Place(site, layer) for layer in resolved]
    collection = Collection(
        bench=bench,
        work=bench.workload(prompts, interventions, job),
        groups=[name for name, of_group in groups.items() for name in repeat(name, len(of_group))],
        rows=index_rows(prompts, positions, pool, averaged=averaged),
        places=places,
        shape=state_shape(bench.model, prompts, places),
    )
    _admit(collection)
    return collection


def _admit(collection: Collection) -> None:
    """Refuses a collection that is too large, before any pass runs.

    Raises:
        LimitExceeded: It passes the server's limit, or the disk has no room for it.
    """
    settings = collection.bench.settings
    allowed = settings.max_states_bytes
    whose = "this server allows"
    if settings.runs.exists() and (room := shutil.disk_usage(settings.runs).free) < allowed:
        allowed, whose = room, "the disk has room for"
    if collection.bytes > allowed:
        shape = " × ".join(map(str, collection.shape))
        raise LimitExceeded(
            f"the states would take {size(collection.bytes)} ({len(collection.rows)} rows × "
            f"{len(collection.places)} layers × {shape} × {_FLOAT} bytes), and {whose} {size(allowed)}.",
            "Choose fewer layers, positions or prompts, or pool='mean'.",
        )
