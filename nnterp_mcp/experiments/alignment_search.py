"""Distributed alignment search: the subspace of a site that carries a causal variable, by interchange interventions."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.engine.executors.execution import Reading, execute
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.attribution.recorded_pass import gradients, require_room
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
        whole: The same with the whole state put in: the most that any subspace of this place is expected to reach.
        unpatched: The same with nothing put in.
        randoms: That of random subspaces of the same size.
        shuffled: That of a subspace trained on shuffled answers.
    """

    subspace: Subspace
    accuracy: float
    whole: float
    unpatched: float
    randoms: list[float]
    shuffled: float


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

    def __post_init__(self) -> None:
        require_place(self.model, self.place)
        if not FACTS[self.place.site].in_stream:
            raise InvalidRequest(
                f"{self.place.site} is not as wide as the residual stream: its subspaces are not found."
            )
        if len(set(self.choices)) < 2:
            raise InvalidRequest("an alignment search needs at least 2 possible answers.")

    def search(
        self, train: Sequence[Interchange], test: Sequence[Interchange], dimensions: int, draws: int = 20
    ) -> Alignment:
        """Trains a subspace on some pairs, and measures it and its controls on others.

        Args:
            train: The pairs to train on.
            test: The pairs to measure on.
            dimensions: The dimensions of the subspace.
            draws: Random subspaces to compare with.

        Raises:
            InvalidRequest: An answer is not among the choices, or the subspace is larger than the stream.
        """
        subspace = self.fit(train, dimensions)
        answers = random.Random(self.seed).sample([pair.answer for pair in train], len(train))
        shuffled = [replace(pair, answer=answer) for pair, answer in zip(train, answers, strict=True)]
        width = self.model.hidden_size
        return Alignment(
            subspace=subspace,
            accuracy=self.accuracy(test, subspace),
            whole=self.accuracy(test, torch.eye(width)),
            unpatched=self.accuracy(test, torch.zeros(width, 1)),
            randoms=[self.accuracy(test, self.draw(dimensions, self.seed + 1 + draw)) for draw in range(draws)],
            shuffled=self.accuracy(test, self.fit(shuffled, dimensions)),
        )

    def draw(self, dimensions: int, seed: int) -> Subspace:
        """A random subspace."""
        numbers = torch.randn(self.model.hidden_size, dimensions, generator=torch.Generator().manual_seed(seed))
        return torch.linalg.qr(numbers).Q

    def fit(self, pairs: Sequence[Interchange], dimensions: int) -> Subspace:
        """The subspace whose interchange makes the counterfactual answers most probable, on the CPU."""
        self._require(pairs, dimensions)
        device = self.model.device
        free = self.draw(dimensions, self.seed).to(device).requires_grad_()
        descent = torch.optim.Adam([free], lr=self.rate)
        dice = random.Random(self.seed)
        slowing = torch.optim.lr_scheduler.LinearLR(descent, 1.0, 0.01, self.steps)
        for _ in range(self.steps):
            check_cancelled()
            chosen = dice.sample(list(pairs), min(self.batch, len(pairs)))
            sources = self._sources(chosen)
            with gradients(self.model.module):
                logits = self._run(chosen, sources, torch.linalg.qr(free).Q, recorded=True)
                loss = torch.nn.functional.cross_entropy(logits, self._answers(chosen))
                (free.grad,) = torch.autograd.grad(loss, [free])
            descent.step()
            slowing.step()
        return torch.linalg.qr(free.detach()).Q.cpu()

    @torch.no_grad()
    def accuracy(self, pairs: Sequence[Interchange], subspace: Float[Tensor, "hidden dimension"]) -> float:
        """The share of pairs whose answer after the interchange is the counterfactual one."""
        self._require(pairs, 1)
        right = 0
        for start in range(0, len(pairs), self.batch):
            check_cancelled()
            chosen = pairs[start : start + self.batch]
            logits = self._run(chosen, self._sources(chosen), subspace.to(self.model.device))
            right += int((logits.argmax(-1) == self._answers(chosen)).sum())
        return right / len(pairs)

    def _require(self, pairs: Sequence[Interchange], dimensions: int) -> None:
        if not pairs:
            raise InvalidRequest("an alignment search needs pairs to train on, and others to measure on.")
        if not 1 <= dimensions <= self.model.hidden_size:
            raise InvalidRequest(f"a subspace of {dimensions} dimensions: the stream has {self.model.hidden_size}.")
        for pair in pairs:
            if pair.answer not in self.choices:
                raise InvalidRequest(f"the answer {pair.answer} is not among the choices {list(self.choices)}.")

    def _answers(self, pairs: Sequence[Interchange]) -> Tensor:
        return torch.tensor([list(self.choices).index(pair.answer) for pair in pairs], device=self.model.device)

    def _batch(self, prompts: Sequence[EncodedPrompt]) -> Batch:
        return pad_batch(list(prompts), self.model.pad_id, self.model.device)

    @torch.no_grad()
    def _sources(self, pairs: Sequence[Interchange]) -> Float[Tensor, "pair hidden"]:
        """The states of the source prompts."""
        batch = self._batch([pair.source for pair in pairs])
        columns = [padding + pair.from_ for padding, pair in zip(batch.padding, pairs, strict=True)]
        reading = Reading({self.place: lambda states: states[range(len(pairs)), columns].float()})
        execute(self.model, {**batch.inputs, "use_cache": False}, reading)
        return reading.taken[self.place]

    def _run(
        self, pairs: Sequence[Interchange], sources: Tensor, subspace: Tensor, *, recorded: bool = False
    ) -> Float[Tensor, "pair choice"]:
        """The logits of the choices after each base prompt."""
        batch = self._batch([pair.base for pair in pairs])
        if recorded:
            require_room(self.model, batch, self.model.num_layers)
        columns = [padding + pair.at for padding, pair in zip(batch.padding, pairs, strict=True)]
        ends = [padding + len(prompt.ids) - 1 for padding, prompt in zip(batch.padding, batch.prompts, strict=True)]
        visitor = _Interchanging(self.place, columns, sources, subspace)
        rows = range(len(pairs))
        logits = execute(
            self.model,
            {**batch.inputs, "use_cache": False},
            visitor,
            lambda made: made[rows, ends][:, list(self.choices)],
        )
        assert logits is not None
        return logits.float()


class _Interchanging:
    """Puts the sources' part in a subspace in the place of the rows' own."""

    skipped: Collection[int] = ()

    def __init__(self, place: Place, columns: Sequence[int], sources: Tensor, subspace: Tensor) -> None:
        self.places = [place]
        self._columns = list(columns)
        self._sources = sources
        self._subspace = subspace

    def visit(self, place: Place, value: Tensor) -> Tensor:
        """The states with the part of each source."""
        rows = list(range(len(self._columns)))
        own = value[rows, self._columns].float()
        mixed = own + (self._sources - own) @ self._subspace @ self._subspace.T
        return value.index_put(
            (torch.tensor(rows, device=value.device), torch.tensor(self._columns, device=value.device)), mixed.to(value)
        )
