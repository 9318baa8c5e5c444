"""Steering over a sweep of layers and factors, next to the unsteered model and to random directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.branch_pass import AddedByEntry, Input
from nnterp_mcp.engine.branches import Branches
from nnterp_mcp.engine.edits import StateEdit
from nnterp_mcp.engine.forward import LogitReduction
from nnterp_mcp.engine.generation import generate
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.readouts.next_token import Readout, ReadoutRows
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.token_spans import Reach
from nnterp_mcp.engine.workload import Workload, ignore_progress
from nnterp_mcp.experiments.activations import read_states
from nnterp_mcp.experiments.compared_runs import Compare, ReadRuns, comparison, read_compared
from nnterp_mcp.experiments.steering_vectors import random_direction
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.request.positions import PositionSpec, goes_on


@dataclass(frozen=True)
class Dose:
    """The addition to a prompt's states in one cell of a sweep.

    Attributes:
        prompt: The prompt's index.
        layer: The layer after which a direction is added; None for the baseline.
        factor: What the direction is multiplied by.
        control: Which control it is, given ones before random directions; None for the vector itself.
    """

    prompt: int
    layer: int | None = None
    factor: float = 0.0
    control: int | None = None

    @property
    def run(self) -> Dose:
        """The dose whose run shows what this one does: a factor of zero adds nothing, so the baseline shows it."""
        return self if self.factor else Dose(self.prompt)


@dataclass(frozen=True)
class Sweep:
    """The readings of every dose, in their order; on the CPU.

    Attributes:
        doses: For each prompt its baseline, then the vector and its controls by layer and factor.
        readout: What is kept of each distribution after the prompt.
        kl: KL(steered ‖ baseline) of that distribution, in nats.
        stream: The length of each prompt's unsteered state at its last token, after each layer of the sweep.
        texts: The tokens that were generated, by dose; empty where none were.
        labels: The other interventions, one short line each.
    """

    doses: list[Dose]
    readout: Readout
    kl: Float[Tensor, " dose"]
    stream: Float[Tensor, "prompt layer"]
    texts: dict[int, list[int]]
    labels: Sequence[str]


def doses_of(prompt: int, layers: Sequence[int], factors: Sequence[float], controls: int) -> list[Dose]:
    """The baseline of one prompt, and the cells of its sweep."""
    directions = [None, *range(controls)]
    cells = [Dose(prompt, layer, factor, control) for layer in layers for factor in factors for control in directions]
    return [Dose(prompt), *cells]


def spread_over_doses(made: Sweep, doses: Sequence[Dose]) -> Sweep:
    """A sweep over all doses, from one over those that needed a run."""
    index = {dose: row for row, dose in enumerate(made.doses)}
    rows = [index[dose.run] for dose in doses]
    return replace(
        made,
        doses=list(doses),
        readout=Readout(*(getattr(made.readout, field.name)[rows] for field in fields(Readout))),
        kl=made.kl[rows],
        texts={at: made.texts[row] for at, row in enumerate(rows) if row in made.texts and speaks(doses[at])},
    )


def speaks(dose: Dose) -> bool:
    """True where text is generated: of the controls, for the first alone."""
    return dose.control in (None, 0)


@torch.inference_mode()
def sweep(
    model: StandardizedTransformer,
    work: Workload,
    directions: Mapping[int, Float[Tensor, " hidden"]],
    factors: Sequence[float],
    *,
    positions: Sequence[PositionSpec] = ("all",),
    controls: int = 0,
    given: Sequence[Float[Tensor, " hidden"]] = (),
    seed: int = 0,
    top_k: int = 3,
    targets: Mapping[str, Sequence[int]] | None = None,
    max_new_tokens: int = 0,
    offer: Callable[[Callable[[], Sweep]], None] = lambda so_far: None,
) -> Sweep:
    """Adds `factor` times a direction to the residual stream after one layer, for every layer and factor.

    Measures what the model does with the addition, not whether it uses the direction by itself. Large additions move
    any distribution, whatever their direction: judge the effect beside random directions of equal length, which
    `controls` asks for, and beside what sense the text still makes.

    All runs are rows of common forward passes. The addition acts at the positions, and at every new token if they are
    `all`, `last` or a range without an end.

    Args:
        work: The prompts; its operations act in every run, the baseline included. Progress is reported in runs that
            were read, then in steps of the generation on top of these.
        directions: What to add after each layer of the sweep.
        factors: What to multiply it by; zero gives the baseline, which always runs.
        positions: The positions of each prompt at which to add.
        controls: How many random directions to add in its place, each as long as the direction of its layer.
        given: Directions to add in its place before these, each at the same length.
        seed: The seed of the first of them; the next ones follow.
        top_k: Number of top tokens to return.
        targets: Token ids by category, whose probability and rank to follow.
        max_new_tokens: How many tokens to generate, greedily; of the controls only the first one generates.
        offer: Handed, once the first runs are read, what makes a sweep of those that are read so far, without texts.

    Raises:
        InvalidRequest: A position does not exist, or a vector does not fit.
        Unsupported: The model cannot do it; by name.

    Source: Turner et al., "Steering Language Models With Activation Engineering" (2023).
    """
    prompts, layers = work.prompts, sorted(directions)
    doses = [dose for prompt in prompts for dose in doses_of(prompt.index, layers, factors, len(given) + controls)]
    needed = list(dict.fromkeys(dose.run for dose in doses))
    runs = SteeredRuns(work, needed, draw_directions(directions, controls, seed, given), positions)
    ends = [[len(prompt.ids) - 1] for prompt in prompts]
    quiet = replace(work, progress=ignore_progress)
    stream = read_states(model, quiet, ends, layers).float().norm(dim=-1).cpu()
    reader, categories = _Reader(len(needed)), list((targets or {}).values())

    def so_far() -> Sweep:
        known = {needed[row] for row in reader.done}
        begun = [row for row, prompt in enumerate(prompts) if any(dose.prompt == prompt.index for dose in known)]
        made = Sweep(needed, reader.readout, reader.kl, stream[begun], {}, work.plan.labels)
        return spread_over_doses(made, [dose for dose in doses if dose.run in known])

    shared = runs.shared(generating=max_new_tokens > 0)
    compare = partial(comparison, top_k, categories)
    read = _read_branches(model, runs, compare) if shared else read_compared(model, *runs.as_rows(), compare)
    for rows, numbers in read:
        reader.take(rows, numbers)
        offer(so_far)
        work.progress(len(reader.done), None if max_new_tokens else len(needed), "runs read")
    texts = _generate(model, runs, shared, max_new_tokens) if max_new_tokens else {}
    return spread_over_doses(Sweep(needed, reader.readout, reader.kl, stream, texts, work.plan.labels), doses)


Drawn = dict[tuple[int, int | None], Float[Tensor, " hidden"]]
"""By layer, the vector's direction (None) and the random ones."""


def draw_directions(
    directions: Mapping[int, Float[Tensor, " hidden"]],
    controls: int,
    seed: int,
    given: Sequence[Float[Tensor, " hidden"]] = (),
) -> Drawn:
    """The directions with their controls, given ones before random ones, each as long as the direction of its layer."""
    drawn: Drawn = {(layer, None): direction.float().cpu() for layer, direction in directions.items()}
    for layer, direction in directions.items():
        norm, width = float(direction.float().norm()), direction.shape[-1]
        for control, instead in enumerate(given):
            drawn[layer, control] = instead * (norm / instead.norm())
        for control in range(controls):
            drawn[layer, len(given) + control] = random_direction(width, norm, seed + control).vectors[0]
    return drawn


class SteeredRuns:
    """The runs of a sweep, numbered in the order of their doses, and the edits that steer them.

    Args:
        work: The prompts, with other operations on them.
        doses: The dose of each run; those of a prompt follow one another, its baseline first.
        drawn: The directions.
        positions: The positions of each prompt at which to add.

    Attributes:
        work: The prompts.
        doses: The dose of each run.

    Raises:
        InvalidRequest: A position does not exist.
    """

    def __init__(
        self,
        work: Workload,
        doses: Sequence[Dose],
        drawn: Drawn,
        positions: Sequence[PositionSpec],
    ) -> None:
        self.work = work
        self.doses = doses
        self._prompts = {prompt.index: prompt for prompt in work.prompts}
        self._where = {prompt.index: resolve_positions(positions, prompt) for prompt in work.prompts}
        self._onward = goes_on(positions)
        self._drawn = drawn

    def shared(self, generating: bool) -> bool:
        """Runs of one prompt have something in common: they are steered from some token on, and not at new ones.

        Args:
            generating: Text is generated.
        """
        everywhere = self._onward and (generating or not all(at[0] for at in self._where.values()))
        return not everywhere and any(dose.layer is not None for dose in self.doses)

    @property
    def first(self) -> int:
        """The first position of any prompt at which a direction is added."""
        return min(at[0] for at in self._where.values())

    def by_prompt(self, runs: Sequence[int]) -> Iterator[tuple[int, Input, list[StateEdit]]]:
        """The baseline of each prompt, its input, and the edits of its steered runs."""
        for prompt, group in groupby(runs, lambda run: self.doses[run].prompt):
            baseline, *steered = group
            yield baseline, Input(self._prompts[prompt], plan=self.work.plan), self._edits(steered)

    def as_rows(self) -> tuple[Workload, list[int]]:
        """Each run as a prompt of its own, and the run of the baseline of each."""
        first: dict[int, int] = {}
        return self.as_prompts(), [first.setdefault(dose.prompt, run) for run, dose in enumerate(self.doses)]

    def as_prompts(self) -> Workload:
        """Each run as a prompt of its own, with the operations and the steering of all of them."""
        owners = [self._prompts[dose.prompt] for dose in self.doses]
        rows = [replace(prompt, index=run) for run, prompt in enumerate(owners)]
        plan = self.work.plan.of_runs(owners, self._edits(range(len(rows))))
        return replace(self.work, prompts=rows, plan=plan, progress=ignore_progress)

    def _edits(self, runs: Sequence[int]) -> list[StateEdit]:
        """One edit for each layer, whatever the number of its runs."""
        by_layer: dict[int, dict[int, Tensor]] = {}
        for run in runs:
            dose = self.doses[run]
            if dose.layer is not None:
                by_layer.setdefault(dose.layer, {})[run] = dose.factor * self._drawn[dose.layer, dose.control]
        edits: list[StateEdit] = []
        for layer, added in by_layer.items():
            reach = Reach({run: self._where[self.doses[run].prompt] for run in added}, self._onward)
            choose = {run: index for index, run in enumerate(added)}.__getitem__
            change = AddedByEntry(torch.stack(list(added.values())), lambda run, position, choose=choose: choose(run))
            edits.append(StateEdit(Place("layers_output", layer), reach, change))
        return edits


def _read_branches(model: StandardizedTransformer, runs: SteeredRuns, compare: Compare) -> ReadRuns:
    def reduce(order: Sequence[int]) -> LogitReduction:
        return compare([0] * (1 + len(order)))

    for baseline, base, edits in runs.by_prompt(range(len(runs.doses))):
        branches = Branches(model, base, edits, reduction=reduce, work=runs.work)
        for batch in branches.run():
            yield [baseline, *batch.rows], batch.numbers


def _generate(
    model: StandardizedTransformer, runs: SteeredRuns, shared: bool, max_new_tokens: int
) -> dict[int, list[int]]:
    """The greedy continuations of the runs that speak."""
    speaking = [run for run, dose in enumerate(runs.doses) if speaks(dose)]

    def report(done: int, total: int | None = None, unit: str = "") -> None:
        runs.work.progress(len(runs.doses) + done, None, "runs read and steps generated")

    if not shared or (len(runs.work.prompts) > 1 and runs.first < max_new_tokens):
        # All prompts in one batch at each step, unless more tokens are shared than generated.
        work = replace(runs.as_prompts(), progress=report)
        found = generate(model, work.some(speaking), max_new_tokens=max_new_tokens)
        return {generation.prompt: generation.ids for generation in found}
    said: dict[int, list[int]] = {}
    for baseline, base, edits in runs.by_prompt(speaking):
        branches = Branches(model, base, edits, max_new_tokens=max_new_tokens, work=runs.work)
        for batch in branches.run():
            said |= zip([baseline, *batch.rows], [batch.base_continuation, *batch.continuations], strict=True)
            report(len(said))
    return said


class _Reader:
    """The readings of the runs so far, each compared with the baseline of its prompt.

    Attributes:
        done: The runs that were read.
        kl: KL(steered ‖ baseline) of each run, on the CPU.
    """

    def __init__(self, count: int) -> None:
        self.done: set[int] = set()
        self.kl = torch.zeros(count)
        self._count = count
        self._rows = ReadoutRows(count)

    @property
    def readout(self) -> Readout:
        """The readout of every run; without meaning where it was not read."""
        return self._rows.read((self._count,))

    def take(self, runs: Sequence[int], numbers: Data) -> None:
        """Takes what was read of some runs; of a baseline again with each batch of its prompt."""
        require_finite(numbers.pop("total"), "logits")
        self.kl[list(runs)] = numbers.pop("kl").cpu()
        self._rows.put(torch.tensor(runs, device=numbers["entropy"].device), Readout(**numbers))
        self.done |= set(runs)
