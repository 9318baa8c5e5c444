"""States for `make_vector` from a run of `collect_activations`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.steering_vectors import MeanStates
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.request.vectors import ReadTokens
from nnterp_mcp.toolset.make_vector.params import MakeVectorParams
from nnterp_mcp.worker.recorded_states import Collected

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


@dataclass(frozen=True)
class AveragedSets:
    """Sets of prompts with their mean states, by name.

    Attributes:
        states: The mean states.
        prompts: The prompts.
        reading: The tokens of each prompt that its mean is over; None without prompts.
        interventions: The interventions with which the states were read.
    """

    states: dict[str, MeanStates]
    prompts: Mapping[str, Sequence[Prompt]]
    reading: ReadTokens | None
    interventions: Sequence[str] = ()

    @property
    def first_left_out(self) -> bool:
        """True if each prompt's first token is left out of its mean."""
        return self.reading is not None and self.reading.pool != "last" and "all" in self.reading.positions


def recall_states(bench: Bench, params: MakeVectorParams) -> AveragedSets:
    """The mean states of the prompts of each chosen group.

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
    found = kept.result
    groups = _groups(kept, params)
    read = sorted({row.prompt for row in found.rows})
    own = {name: [at for at in read if found.prompts[at].group == name] for name in groups}
    return AveragedSets(
        {group: _states(kept, group, own[group], layers) for group in groups},
        {group: [kept.prompts[at] for at in own[group]] for group in groups},
        kept.reading.model_copy(update={"pool": "last" if kept.reading.pool == "last" else "mean"}),
        found.interventions,
    )


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


def _states(kept: Collected, group: str, prompts: Sequence[int], layers: Sequence[int]) -> MeanStates:
    if not prompts:
        raise InvalidRequest(f"{kept.run_id} was stopped before it read a prompt of {shown(group)}.")
    listed, averaged = kept.result.rows, kept.result.averaged_rows
    rows = [[at for at in averaged if listed[at].prompt == prompt] for prompt in prompts]
    means: list[Tensor] = []
    norms: list[list[Tensor]] = []
    for layer in layers:
        states = torch.from_numpy(kept.along(layer))
        means.append(torch.stack([states[own].mean(0) for own in rows]))
        norms.append([states[own].norm(dim=-1) for own in rows])
    return MeanStates(
        list(layers),
        torch.stack(means, dim=1),
        [[listed[at].position for at in own] for own in rows],
        [torch.stack(of_prompt, dim=1) for of_prompt in zip(*norms, strict=True)],
    )
