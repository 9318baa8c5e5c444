"""States for `make_vector` from a run of `collect_activations`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.steering_vectors import MeanStates
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.toolset.make_vector.params import MakeVectorParams
from nnterp_mcp.worker.recorded_states import Collected

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


def recall_states(bench: Bench, params: MakeVectorParams) -> tuple[list[MeanStates], list[str]]:
    """The mean states of the prompts of each chosen group, and the interventions under which they were read.

    Raises:
        InvalidRequest: There is no such run, it belongs to other weights, recorded another site or has no such group.
    """
    assert params.run is not None
    kept = bench.find_states(params.run)
    if kept.site != "layers_output":
        raise InvalidRequest(
            f"{params.run} kept states at {kept.site}, and a vector is a direction of the stream after layers.",
            "Collect layers_output.",
        )
    layers = [layer for layer in kept.result.layers if layer is not None]
    if params.layers != "all":
        layers = resolve_layers(params.layers, bench.model.num_layers, bench.handle)
    return [_states(kept, group, layers) for group in _groups(kept, params)], kept.result.interventions


def _groups(kept: Collected, params: MakeVectorParams) -> list[str]:
    """The groups by name; where none is named, the run's own, if there are as many as the method takes."""
    groups = kept.result.groups
    named = [_named(prompts, groups, kept.run_id) for prompts in (params.positive, params.negative) if prompts]
    wanted = 1 if params.method == "activation" else 2
    if not named and len(groups) == wanted:
        return groups
    if len(named) != wanted:
        having = ", ".join(map(shown, groups))
        raise InvalidRequest(
            f"{params.method} takes {wanted} of the groups of {kept.run_id} ({having}), and {len(named)} came.",
            "Name them as positive and negative." if wanted == 2 else "Name it as positive.",
        )
    return named


def _named(prompts: Sequence[Prompt], groups: Sequence[str], run_id: str) -> str:
    (name,) = prompts if len(prompts) == 1 else (None,)
    if not isinstance(name, str) or name not in groups:
        came = shown(name if len(prompts) == 1 else list(prompts))
        raise InvalidRequest(f"{run_id} has no group {came}: its groups are {', '.join(map(shown, groups))}.")
    return name


def _states(kept: Collected, group: str, layers: Sequence[int]) -> MeanStates:
    prompts = np.array([row.prompt for row in kept.result.rows])
    chosen = [at for at in np.unique(prompts) if kept.result.prompts[at].group == group]
    if not chosen:
        raise InvalidRequest(f"{kept.run_id} was stopped before it read a prompt of {shown(group)}.")
    means, lengths = [], []
    for layer in layers:
        states = torch.from_numpy(kept.along(layer))
        of_prompts = [states[prompts == at] for at in chosen]
        means.append(torch.stack([rows.mean(0) for rows in of_prompts]))
        lengths.append(torch.stack([rows.norm(dim=-1).mean() for rows in of_prompts]))
    return MeanStates(list(layers), torch.stack(means, dim=1), torch.stack(lengths, dim=1))
