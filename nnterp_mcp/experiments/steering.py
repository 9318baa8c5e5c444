"""Steering over a sweep of layers and factors, beside the unsteered model and beside random directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.backend import runs_elsewhere
from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.readouts.next_token import Categories, Readout, read_distribution
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.activations import read_states
from nnterp_mcp.experiments.additions import Run, additions
from nnterp_mcp.experiments.steering_vectors import random_direction
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.request.positions import PositionSpec


@dataclass(frozen=True)
class Dose:
    """What one cell of a sweep adds to a prompt's states.

    Attributes:
        prompt: The prompt's index.
        layer: The layer after which a direction is added; None for the baseline.
        factor: What the direction is multiplied by.
        control: Which random direction it is; None for the vector itself.
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
    """What came of every dose, in their order; on the CPU.

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


def runs_of(doses: Sequence[Dose]) -> list[Dose]:
    """The doses that need a run of their own, in their order."""
    return list(dict.fromkeys(dose.run for dose in doses))


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
    """Whether text is generated; of the controls only the first one's."""
    return dose.control in (None, 0)


@runs_elsewhere
@torch.inference_mode()
def sweep(
    model: StandardizedTransformer,
    prompts: Sequence[EncodedPrompt],
    directions: Mapping[int, Float[Tensor, " hidden"]],
    factors: Sequence[float],
    *,
    positions: Sequence[PositionSpec] = ("all",),
    plan: Plan = NOTHING,
    controls: int = 0,
    seed: int = 0,
    top_k: int = 3,
    targets: Mapping[str, Sequence[int]] | None = None,
    max_new_tokens: int = 0,
    batch_tokens: int = 4096,
    on_batch: Callable[[int], None] = lambda runs_done: None,
    on_token: Callable[[int], None] = lambda steps_done: None,
    offer: Callable[[Callable[[], Sweep]], None] = lambda so_far: None,
) -> Sweep:
    """Adds `factor` times a direction to the residual stream after one layer, for every layer and factor.

    Measures what the model does with the addition, not whether it uses the direction by itself. Large additions move
    any distribution, whatever their direction: judge the effect beside random directions of equal length, which
    `controls` asks for, and beside what sense the text still makes.

    All runs are rows of common forward passes. The addition acts at the positions, and at every new token if they are
    `all`, `last` or a range without an end.

    Args:
        model: The model.
        prompts: The prompts.
        directions: What to add after each layer of the sweep.
        factors: What to multiply it by; zero gives the baseline, which always runs.
        positions: The positions of each prompt at which to add.
        plan: Other interventions, planned for these prompts; they act in every run, the baseline included.
        controls: How many random directions to add in its place, each as long as the direction of its layer.
        seed: The seed of the first of them; the next ones follow.
        top_k: How many of the likeliest tokens to keep.
        targets: Token ids by category, whose probability and rank to follow.
        max_new_tokens: How many tokens to generate, greedily; of the controls only the first one generates.
        batch_tokens: Padded tokens in a forward pass, at most.
        on_batch: Called after each forward pass with the number of runs read; what it raises ends the sweep.
        on_token: Called after each step of the generation with the number of steps done; likewise.
        offer: Handed, once the first runs are read, what makes a sweep of those that are read so far, without texts.

    Raises:
        InvalidRequest: A position does not exist, or a vector does not fit.
        Unsupported: The model cannot do it; by name.

    Source: Turner et al., "Steering Language Models With Activation Engineering" (2023).
    """
    layers = sorted(directions)
    doses = [dose for prompt in prompts for dose in doses_of(prompt.index, layers, factors, controls)]
    by_index = {prompt.index: prompt for prompt in prompts}
    drawn = draw_directions(directions, controls, seed)
    needed = runs_of(doses)
    runs = [Run(by_index[dose.prompt], dose.layer, vector_of(dose, drawn)) for dose in needed]
    making = additions(model, runs, positions, plan, generating=max_new_tokens > 0, batch_tokens=batch_tokens)
    ends = [[len(prompt.ids) - 1] for prompt in prompts]
    stream = read_states(model, Workload(prompts, plan, batch_tokens), ends, layers).float().norm(dim=-1)
    reader = _Reader(needed, top_k, list((targets or {}).values()))

    def so_far() -> Sweep:
        read = [needed[row] for row in sorted(reader.order)]
        begun = {dose.prompt for dose in read}
        lengths = stream[[row for row, prompt in enumerate(prompts) if prompt.index in begun]].cpu()
        made, known = Sweep(read, reader.readout, reader.kl, lengths, {}, plan.labels), set(read)
        return spread_over_doses(made, [dose for dose in doses if dose.run in known])

    for rows, logits in making.read():
        reader.take(rows, logits)
        offer(so_far)
        on_batch(len(reader.order))
    speaking = [row for row, dose in enumerate(needed) if speaks(dose)]
    texts = making.generate(speaking, max_new_tokens, on_token) if max_new_tokens else {}
    return spread_over_doses(Sweep(needed, reader.readout, reader.kl, stream.cpu(), texts, plan.labels), doses)


Drawn = dict[tuple[int, int | None], Float[Tensor, " hidden"]]
"""By layer, the vector's direction (None) and the random ones."""


def draw_directions(directions: Mapping[int, Float[Tensor, " hidden"]], controls: int, seed: int) -> Drawn:
    """The directions with their random controls, each as long as the direction of its layer."""
    drawn: Drawn = {(layer, None): direction.float().cpu() for layer, direction in directions.items()}
    for layer, direction in directions.items():
        norm, width = float(direction.float().norm()), direction.shape[-1]
        for control in range(controls):
            drawn[layer, control] = random_direction(width, norm, seed + control).vectors[0]
    return drawn


def vector_of(dose: Dose, drawn: Drawn) -> Float[Tensor, " hidden"] | None:
    """What a run adds."""
    return None if dose.layer is None else dose.factor * drawn[dose.layer, dose.control]


class _Reader:
    """Keeps what is to be known of runs that come batch by batch, each against the baseline of its prompt."""

    def __init__(self, doses: Sequence[Dose], top_k: int, categories: Sequence[Sequence[int]]) -> None:
        self.order: list[int] = []
        self._doses = doses
        self._top_k = top_k
        self._categories = list(categories)
        self._baselines: dict[int, Float[Tensor, " vocabulary"]] = {}
        self._readouts: list[Readout] = []
        self._kl: list[Tensor] = []

    @property
    def readout(self) -> Readout:
        """What is kept of every distribution, in the order of the doses."""
        return Readout.gather(self._readouts, self.order, (len(self.order),))

    @property
    def kl(self) -> Float[Tensor, " dose"]:
        """KL(steered ‖ baseline), in the order of the doses."""
        return torch.cat(self._kl).cpu()[torch.tensor(self.order).argsort()]

    def take(self, rows: Sequence[int], logits: Float[Tensor, "row vocabulary"]) -> None:
        """Reads some runs; a prompt's baseline comes before its other runs."""
        categories = Categories.of([self._categories] * len(rows), logits.device)
        self._readouts.append(read_distribution(logits, self._top_k, categories))
        self._kl.append(self._divergences(rows, logits.float()))
        self.order += rows

    def _divergences(self, rows: Sequence[int], logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, " row"]:
        parts: list[Tensor] = []
        log_probs = logits - logits.logsumexp(-1, keepdim=True)
        for prompt, group in groupby(range(len(rows)), lambda at: self._doses[rows[at]].prompt):
            own = log_probs[list(group)]
            if prompt not in self._baselines:
                # The next batch may go on with the last prompt's runs, and with no others.
                self._baselines = {prompt: own[0].clone()}
            parts.append(_divergence(own, self._baselines[prompt]))
        return torch.cat(parts)


def _divergence(
    steered: Float[Tensor, "row vocabulary"], baseline: Float[Tensor, " vocabulary"]
) -> Float[Tensor, " row"]:
    probs = steered.exp()
    return torch.where(probs > 0, probs * (steered - baseline), 0).sum(-1).clamp_min(0)
