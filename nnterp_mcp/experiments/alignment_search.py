"""Distributed alignment search: the subspace of a site that carries a causal variable, by interchange interventions."""

from __future__ import annotations

import inspect
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.engine.executors.execution import execute, last_column
from nnterp_mcp.engine.forward import NOTHING, Capture, Plan, PlannedPass, attention_for
from nnterp_mcp.engine.hook_points import Place, in_order, require_place
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.engine.workload import ReportProgress, ignore_progress
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.attribution.recorded_pass import gradients
from nnterp_mcp.model.memory import free, of_pass
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt, pad_batch
from nnterp_mcp.request.sites import FACTS

Subspace = Float[Tensor, "hidden dimension"]
"""Orthonormal columns."""


@dataclass(frozen=True)
class Interchange:
    """A base prompt that gets a causal variable's value from a source prompt.

    Attributes:
        base: The prompt that is run.
        source: The prompt whose state is put in.
        at: The position in the base prompt.
        from_: The position in the source prompt.
        answer: The token that the causal model predicts with the source's value of the variable.
    """

    base: EncodedPrompt
    source: EncodedPrompt
    at: int
    from_: int
    answer: int


@dataclass(frozen=True)
class Alignment:
    """A subspace, and interchange accuracies on pairs that did not train it.

    Attributes:
        subspace: The subspace.
        accuracy: The share of pairs whose answer, among the possible ones, is the counterfactual one.
        certainty: The mean probability of the counterfactual answer among the possible ones. Where it is close to 1,
            the loss was flat, and the subspace is found only roughly.
        whole: The accuracy with the whole state put in: the most that any subspace of this place is expected to reach.
        unpatched: That with nothing put in.
        randoms: That of random subspaces of the same size.
        shuffled: That of a subspace trained on shuffled answers.
        untrained: That of a subspace trained in a randomly initialised model; None without such a model.
        untrained_unpatched: That of this model with nothing put in.
    """

    subspace: Subspace
    accuracy: float
    certainty: float
    whole: float
    unpatched: float
    randoms: list[float]
    shuffled: float
    untrained: float | None = None
    untrained_unpatched: float | None = None


@dataclass(frozen=True)
class _ReadPairs:
    """Pairs whose states are read: training repeats only what comes after them.

    Attributes:
        pairs: The pairs.
        sources: The state of each source.
        bases: The states of each base prompt, where the pass can begin with them; None elsewhere.
        answers: The counterfactual answers, as indices into the choices.
    """

    pairs: Sequence[Interchange]
    sources: Float[Tensor, "pair hidden"]
    bases: Sequence[Float[Tensor, "position hidden"]] | None
    answers: Int[Tensor, " pair"]


@dataclass(frozen=True)
class AlignmentSearch:
    """Finds subspaces by gradient descent on the counterfactual answer's log-probability among the possible answers.

    A subspace found so makes the model act as the causal model says. It does not show that the model uses it by itself:
    with many dimensions and few pairs a subspace can be found in a model that knows nothing, so compare with the
    controls, and with a randomly initialised model. Where most answers are certain, the loss is flat, and the subspace
    is found only roughly though its accuracy is 1.

    Attributes:
        model: The model.
        place: A site in the residual stream, or a contribution to it.
        choices: The tokens of the possible answers.
        steps: Steps of Adam.
        rate: Its learning rate, which falls to a hundredth of it.
        batch: Pairs in a step.
        seed: The seed of the first subspace, of the batches and of the controls.
        of_bases: Interventions in every run of a base prompt, planned for these; the interchange comes after theirs.
        of_sources: Interventions in every run of a source prompt, planned for these.

    Source: Geiger et al., "Finding Alignments Between Interpretable Causal Variables and Distributed Neural
    Representations" (2023).
    """

    model: StandardizedTransformer
    place: Place
    choices: Sequence[int]
    steps: int = 200
    rate: float = 0.03
    batch: int = 32
    seed: int = 0
    of_bases: Plan = NOTHING
    of_sources: Plan = NOTHING

    def __post_init__(self) -> None:
        require_place(self.model, self.place)
        if not FACTS[self.place.site].in_stream:
            raise InvalidRequest(
                f"{self.place.site} is not as wide as the residual stream: its subspaces are not found."
            )
        if len(set(self.choices)) < 2:
            raise InvalidRequest("an alignment search needs at least 2 possible answers.")

    def search(
        self,
        train: Sequence[Interchange],
        test: Sequence[Interchange],
        dimensions: int,
        draws: int = 20,
        untrained: StandardizedTransformer | None = None,
        progress: ReportProgress = ignore_progress,
    ) -> Alignment:
        """Trains a subspace on some pairs, and measures it and its controls on others.

        Args:
            train: The pairs to train on.
            test: The pairs to measure on.
            dimensions: The dimensions of the subspace.
            draws: Random subspaces to compare with.
            untrained: A randomly initialised model of the same architecture, in which a subspace is trained too.
            progress: Where progress is reported, in steps of all that is trained.

        Raises:
            InvalidRequest: An answer is not among the choices, or the subspace is larger than the stream.
            OutOfMemoryError: A single pair does not fit the memory.
        """
        fits = 2 if untrained is None else 3

        def report(fit: int) -> ReportProgress:
            return lambda done, total, unit: progress(fit * self.steps + done, fits * self.steps, unit)

        known, unseen = self._read(train), self._read(test)
        subspace = self._fit(known, dimensions, report(0))
        answers = random.Random(self.seed).sample(known.answers.tolist(), len(train))
        shuffled = replace(known, answers=torch.tensor(answers, device=self.model.device))
        certain, accuracy = self._measure(unseen, subspace)
        width = self.model.hidden_size

        def accuracy_of(other: Float[Tensor, "hidden dimension"]) -> float:
            return self._measure(unseen, other)[1]

        found = Alignment(
            subspace=subspace,
            accuracy=accuracy,
            certainty=certain,
            whole=accuracy_of(torch.eye(width)),
            unpatched=accuracy_of(torch.zeros(width, 1)),
            randoms=[accuracy_of(self.draw(dimensions, self.seed + 1 + draw)) for draw in range(draws)],
            shuffled=accuracy_of(self._fit(shuffled, dimensions, report(1))),
        )
        if untrained is None:
            return found
        control = replace(self, model=untrained)
        drawn = control._fit(control._read(train), dimensions, report(2))
        alone = control.accuracy(test, torch.zeros(width, 1))
        return replace(found, untrained=control.accuracy(test, drawn), untrained_unpatched=alone)

    def draw(self, dimensions: int, seed: int) -> Subspace:
        """A random subspace."""
        numbers = torch.randn(self.model.hidden_size, dimensions, generator=torch.Generator().manual_seed(seed))
        return torch.linalg.qr(numbers).Q

    def fit(self, pairs: Sequence[Interchange], dimensions: int) -> Subspace:
        """The subspace whose interchange makes the counterfactual answers most probable, on the CPU."""
        return self._fit(self._read(pairs), dimensions, ignore_progress)

    def logits(
        self, pairs: Sequence[Interchange], subspace: Float[Tensor, "hidden dimension"]
    ) -> Float[Tensor, "pair choice"]:
        """The logits of the choices after each base prompt, with the source's part in a subspace, on the CPU."""
        return self._logits(self._read(pairs), subspace).cpu()

    def accuracy(self, pairs: Sequence[Interchange], subspace: Float[Tensor, "hidden dimension"]) -> float:
        """The share of pairs whose answer after the interchange is the counterfactual one."""
        return self._measure(self._read(pairs), subspace)[1]

    def _fit(self, read: _ReadPairs, dimensions: int, progress: ReportProgress) -> Subspace:
        if not 1 <= dimensions <= self.model.hidden_size:
            raise InvalidRequest(f"a subspace of {dimensions} dimensions: the stream has {self.model.hidden_size}.")
        free_numbers = self.draw(dimensions, self.seed).to(self.model.device).requires_grad_()
        descent = torch.optim.Adam([free_numbers], lr=self.rate)
        dice = random.Random(self.seed)
        slowing = torch.optim.lr_scheduler.LinearLR(descent, 1.0, 0.01, self.steps)
        for step in range(self.steps):
            check_cancelled()
            chosen = dice.sample(range(len(read.pairs)), min(self.batch, len(read.pairs)))
            free_numbers.grad = torch.zeros_like(free_numbers)
            for part in self._fitting(read, chosen):
                with gradients(self.model.module):
                    logits = self._run(read, part, torch.linalg.qr(free_numbers).Q)
                    loss = torch.nn.functional.cross_entropy(logits, read.answers[part], reduction="sum") / len(chosen)
                    free_numbers.grad += torch.autograd.grad(loss, [free_numbers])[0]
            descent.step()
            slowing.step()
            progress(step + 1, self.steps, "steps")
        return torch.linalg.qr(free_numbers.detach()).Q.cpu()

    def _fitting(self, read: _ReadPairs, chosen: Sequence[int]) -> list[list[int]]:
        """The pairs of a step in parts whose activations, which autograd keeps, fit the memory.

        Raises:
            torch.OutOfMemoryError: A single pair does not.
        """
        columns = max(len(read.pairs[at].base.ids) for at in chosen)
        layers = self.model.num_layers - (0 if read.bases is None else self._resting)
        room, size = free(self.model.device), len(chosen)
        while of_pass(self.model, size, columns, self.model.attention == "eager", layers) > room:
            if size == 1:
                raise torch.OutOfMemoryError("estimated to be too large")
            size = (size + 1) // 2
        return [list(chosen[start : start + size]) for start in range(0, len(chosen), size)]

    @torch.no_grad()
    def _logits(self, read: _ReadPairs, subspace: Float[Tensor, "hidden dimension"]) -> Float[Tensor, "pair choice"]:
        basis = subspace.to(self.model.device)
        parts: list[Tensor] = []
        for start in range(0, len(read.pairs), self.batch):
            check_cancelled()
            parts.append(self._run(read, range(start, min(start + self.batch, len(read.pairs))), basis))
        return torch.cat(parts)

    def _measure(self, read: _ReadPairs, subspace: Float[Tensor, "hidden dimension"]) -> tuple[float, float]:
        """The mean probability of the counterfactual answers, and the share of them that are the most probable."""
        logits = self._logits(read, subspace)
        answered = logits.softmax(-1).gather(1, read.answers[:, None])
        return float(answered.mean()), float((logits.argmax(-1) == read.answers).double().mean())

    @property
    def _resting(self) -> int:
        """The layers before the place, which need not run once the states there are known.

        Under interventions all of them run: a later one may take states from an earlier layer.
        """
        layer = None if self.of_bases else self.place.layer
        return layer + 1 if self.place.site == "layers_output" and layer is not None else 0

    @torch.no_grad()
    def _read(self, pairs: Sequence[Interchange]) -> _ReadPairs:
        """The states of sources, and of base prompts where passes can begin with them."""
        if not pairs:
            raise InvalidRequest("an alignment search needs pairs to train on, and others to measure on.")
        for pair in pairs:
            if pair.answer not in self.choices:
                raise InvalidRequest(f"the answer {pair.answer} is not among the choices {list(self.choices)}.")
        sources: list[Tensor] = []
        bases: list[Tensor] = []
        for start in range(0, len(pairs), self.batch):
            part = pairs[start : start + self.batch]
            given = self._states([pair.source for pair in part], self.of_sources)
            sources += [states[pair.from_] for states, pair in zip(given, part, strict=True)]
            bases += self._states([pair.base for pair in part], self.of_bases) if self._resting else []
        indices = {token: at for at, token in reversed(list(enumerate(self.choices)))}
        answers = torch.tensor([indices[pair.answer] for pair in pairs], device=self.model.device)
        return _ReadPairs(pairs, torch.stack(sources).float(), bases or None, answers)

    def _batch(self, prompts: Sequence[EncodedPrompt]) -> Batch:
        return pad_batch(list(prompts), self.model.pad_id, self.model.device)

    def _states(self, prompts: Sequence[EncodedPrompt], plan: Plan) -> list[Float[Tensor, "position hidden"]]:
        """The states of prompts at the place."""
        check_cancelled()
        batch = self._batch(prompts)
        reading = PlannedPass(Window.over(batch), plan, [Capture(self.place, None)])
        with attention_for(self.model, plan):
            execute(self.model, {**batch.inputs, "use_cache": False}, reading)
        (found,) = reading.values
        return [row[padding:].clone() for row, padding in zip(found, batch.padding, strict=True)]

    def _run(self, read: _ReadPairs, chosen: Sequence[int], subspace: Tensor) -> Float[Tensor, "pair choice"]:
        """The logits of the choices after each base prompt."""
        pairs = [read.pairs[at] for at in chosen]
        batch = self._batch([pair.base for pair in pairs])
        columns = [padding + pair.at for padding, pair in zip(batch.padding, pairs, strict=True)]
        entry = None
        if read.bases is not None:
            known = zip(chosen, batch.padding, strict=True)
            entry = torch.stack([torch.nn.functional.pad(read.bases[at], (0, 0, gap, 0)) for at, gap in known])
        planned = PlannedPass(Window.over(batch), self.of_bases, [])
        visitor = _Interchanging(self.place, columns, read.sources[list(chosen)], subspace, entry, planned)
        inputs: dict[str, object] = {**batch.inputs, "use_cache": False}
        if "logits_to_keep" in inspect.signature(self.model.module.forward).parameters:
            inputs["logits_to_keep"] = 1
        with attention_for(self.model, self.of_bases):
            logits = execute(self.model, inputs, visitor, last_column)
        assert logits is not None
        return logits[:, list(self.choices)]


class _Interchanging:
    """Puts the sources' part in a subspace in the place of the rows' own.

    Args:
        place: The place.
        columns: The column of each row.
        sources: The state of each source.
        subspace: The subspace.
        entry: The states of the rows, which need not be computed again; None where the pass computes them.
        planned: The interventions of the pass.
    """

    def __init__(
        self,
        place: Place,
        columns: Sequence[int],
        sources: Tensor,
        subspace: Tensor,
        entry: Tensor | None,
        planned: PlannedPass,
    ) -> None:
        self.places = in_order({place, *planned.places})
        resting = () if entry is None or place.layer is None else range(place.layer + 1)
        self.skipped: Collection[int] = {*resting, *planned.skipped}
        self._place = place
        self._planned = planned
        self._columns = list(columns)
        self._sources = sources
        self._subspace = subspace
        self._entry = entry

    def visit(self, place: Place, value: Tensor) -> Tensor:
        """The states after the interventions, at the place with the part of each source."""
        came = self._planned.visit(place, value)
        if place != self._place:
            return came
        states = came if self._entry is None else self._entry
        rows = torch.arange(len(self._columns), device=states.device)
        columns = torch.tensor(self._columns, device=states.device)
        own = states[rows, columns].float()
        mixed = own + (self._sources - own) @ self._subspace @ self._subspace.T
        return states.index_put((rows, columns), mixed.to(states))


@torch.no_grad()
def find_answers(
    model: StandardizedTransformer, prompts: Sequence[EncodedPrompt], plan: Plan = NOTHING, batch: int = 32
) -> list[int]:
    """The most probable next token of each prompt, under interventions that are planned for them."""
    found: list[int] = []
    for start in range(0, len(prompts), batch):
        check_cancelled()
        part = pad_batch(list(prompts[start : start + batch]), model.pad_id, model.device)
        visitor = PlannedPass(Window.over(part), plan, [])
        with attention_for(model, plan):
            logits = execute(model, {**part.inputs, "use_cache": False}, visitor, last_column)
        assert logits is not None
        found += logits.argmax(-1).tolist()
    return found
