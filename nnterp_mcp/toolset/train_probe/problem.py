"""The states that `train_probe` works on: read now, or those of an earlier run, with their classes row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.probes import join_pairs
from nnterp_mcp.request.positions import LayerSpec
from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.request.vectors import ReadTokens
from nnterp_mcp.runs.arrays import HeldRows
from nnterp_mcp.toolset.train_probe.params import TrainProbeParams
from nnterp_mcp.toolset.train_probe.result import ProbedGroup
from nnterp_mcp.worker.dominance import AveragedToken
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.state_collection import prepare

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


@dataclass(frozen=True)
class Problem:
    """Classes of states to be told apart.

    Attributes:
        along: The states of every row after a layer.
        layers: The layers; None for the embeddings.
        site: Where the states were read.
        groups: The names of the classes.
        labels: The class of each row.
        prompts: The prompt of each row.
        texts: The number of each row's text; equal texts have the same.
        together: The same number for rows that stay in one fold.
        tokens: How many tokens each row's prompt has.
        interventions: The interventions with which the states were read.
        tokens_of_rows: The group, the prompt's index in it and the position of each row.
        given: The prompts by group.
        prompt_texts: The text of each prompt.
        first_left_out: Each prompt's first token is left out.
        reading: The tokens of each prompt that the rows are the states of.
    """

    along: Callable[[int | None], Float[np.ndarray, "row ..."]]
    layers: list[int | None]
    site: str
    groups: list[str]
    labels: Int[np.ndarray, " row"]
    prompts: Int[np.ndarray, " row"]
    texts: Int[np.ndarray, " row"]
    together: Int[np.ndarray, " row"]
    tokens: Int[np.ndarray, " row"]
    interventions: list[str]
    tokens_of_rows: list[AveragedToken]
    given: Mapping[str, Sequence[Prompt]]
    prompt_texts: list[str]
    first_left_out: bool
    reading: ReadTokens

    def states(self, layer: int | None) -> Float[np.ndarray, "row width"]:
        """The states after a layer, heads side by side.

        Raises:
            InvalidRequest: They are not finite.
        """
        states = self.along(layer)
        if not np.isfinite(states).all():  # of an older run: what is collected now is finite
            raise InvalidRequest("the states are not finite, so that no probe can be trained on them.")
        return states.reshape(len(states), -1)


def read_problem(bench: Bench, params: TrainProbeParams, reading: ReadTokens, layers: LayerSpec, job: Job) -> Problem:
    """The states of a call: of its prompts, or of the run that it names.

    Args:
        bench: The model and the limits.
        params: The call.
        reading: The tokens to read in its prompts.
        layers: The layers; `all` of a run are those that it kept.
        job: The call.

    Raises:
        InvalidRequest: A layer, a position, a prompt or the run does not exist, or belongs to other weights.
    """
    return _recall(bench, params.run, layers) if params.run is not None else _read(bench, params, reading, layers, job)


def _read(bench: Bench, params: TrainProbeParams, reading: ReadTokens, layers: LayerSpec, job: Job) -> Problem:
    assert params.prompts is not None
    collection = prepare(
        bench,
        params.prompts,
        params.site,
        layers,
        reading.positions,
        reading.pool,
        (),
        job,
        averaged=True,
    )
    held = HeldRows(collection.axes)
    collection.read(held, [])
    return _problem(
        along=lambda layer: held.along(collection.layers.index(layer)),
        layers=collection.layers,
        site=params.site,
        names=collection.groups,
        texts=[prompt.text for prompt in collection.work.prompts],
        tokens=[len(prompt.ids) for prompt in collection.work.prompts],
        rows=[(row.prompt, row.position) for row in collection.rows],
        interventions=[],
        given=params.prompts,
        first_left_out="all" in reading.positions,
        reading=reading,
    )


def _recall(bench: Bench, run_id: str, layers: LayerSpec) -> Problem:
    kept = bench.find_states(run_id)
    found = kept.result
    chosen = found.layers
    if layers != "all":
        chosen = list(resolve_layers(layers, bench.model.num_layers, bench.handle))
    averaged = found.averaged_rows
    return _problem(
        along=lambda layer: kept.along(layer)[averaged],
        layers=chosen,
        site=found.site,
        names=[prompt.group for prompt in found.prompts],
        texts=[prompt.text for prompt in found.prompts],
        tokens=[prompt.tokens for prompt in found.prompts],
        rows=[(found.rows[at].prompt, found.rows[at].position) for at in averaged],
        interventions=found.interventions,
        given=kept.groups,
        first_left_out=found.first_left_out,
        reading=kept.reading,
    )


def _problem(
    *,
    along: Callable[[int | None], Float[np.ndarray, "row ..."]],
    layers: Sequence[int | None],
    site: str,
    names: Sequence[str],
    texts: Sequence[str],
    tokens: Sequence[int],
    rows: Sequence[tuple[int, int | None]],
    interventions: list[str],
    given: Mapping[str, Sequence[Prompt]],
    first_left_out: bool,
    reading: ReadTokens,
) -> Problem:
    """Numbers for what is known of each prompt, row by row."""
    groups, prompts = list(dict.fromkeys(names)), np.array([prompt for prompt, _ in rows])
    labels = np.array([groups.index(name) for name in names])
    number_of = {text: at for at, text in enumerate(texts)}
    numbers = np.array([number_of[text] for text in texts])
    return Problem(
        along=along,
        layers=list(layers),
        site=site,
        groups=groups,
        labels=labels[prompts],
        prompts=prompts,
        texts=numbers[prompts],
        together=join_pairs(labels, numbers)[prompts],
        tokens=np.array(tokens)[prompts],
        interventions=interventions,
        tokens_of_rows=[(names[prompt], prompt - names.index(names[prompt]), at) for prompt, at in rows],
        given=given,
        prompt_texts=list(texts),
        first_left_out=first_left_out,
        reading=reading,
    )


def describe_groups(problem: Problem) -> list[ProbedGroup]:
    """The groups with their sizes."""
    found: list[ProbedGroup] = []
    for label, name in enumerate(problem.groups):
        here = problem.labels == label
        _, first = np.unique(problem.prompts[here], return_index=True)
        tokens = float(problem.tokens[here][first].mean())
        found.append(ProbedGroup(name=name, prompts=len(first), rows=int(here.sum()), tokens=tokens))
    return found
