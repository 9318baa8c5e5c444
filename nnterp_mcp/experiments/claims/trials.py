"""The runs of a claim's test: components exchanged in clean and corrupted runs, prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.branches import Branches
from nnterp_mcp.engine.hook_points import Place, in_order
from nnterp_mcp.engine.observation import Observed, Reference, observe, reference_of
from nnterp_mcp.engine.readouts.metrics import MetricName, reduce_to_metric
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.replacements import Replacement, replace_states
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.claims.components import Component, ComponentPart, RunStates
from nnterp_mcp.experiments.patching.alignment import Span
from nnterp_mcp.experiments.patching.corruption import Pair, observe_mean
from nnterp_mcp.model.standardized import StandardizedTransformer

_MOST = 2**28
"""Bytes of unpatched runs that stay in memory, for the next components."""

_WORK = Workload(())


StateOrigin = Literal["other", "mean", "zero", "given"]


@dataclass(frozen=True)
class Trial:
    """One way in which a component is exchanged.

    Attributes:
        into: The run that is changed.
        source: The states that it takes: those of the other run, the position-wise mean over the clean runs, zeros, or
            the mean over all tokens of the prompts in `given_by`.
        strength: The part of the way to these states.
        metric: The metric.
    """

    into: Literal["clean", "corrupted"]
    source: StateOrigin
    metric: MetricName
    strength: float = 1.0


@dataclass(frozen=True)
class _Runs:
    """The unpatched runs of a pair."""

    clean: Observed
    corrupted: Observed | None

    def __len__(self) -> int:
        return len(self.clean) + (0 if self.corrupted is None else len(self.corrupted))


@dataclass(frozen=True)
class _Reader:
    """Reads one run; encodes the same tokens once."""

    run: Observed
    _encoded: dict[tuple[str, tuple[int, ...]], Tensor] = field(default_factory=dict[Any, Tensor])

    def read(self, component: Component, part: ComponentPart, positions: Sequence[int]) -> RunStates:
        """The states of a part, and the activations of features where the component is some of them."""
        states, basis = self.run.states[part.place][list(positions)], component.basis
        if part.unit is not None:
            states = states[:, [part.unit]]
        if basis is None:
            return RunStates(states)
        reads = [self.run.states[place][list(positions)].float().flatten(1) for place in basis.reads]
        key = (basis.name, tuple(positions))
        if key not in self._encoded:
            self._encoded[key] = basis.encode(reads)
        return RunStates(states, reads, self._encoded[key])


@dataclass(frozen=True)
class Behaviour:
    """Prompts and the metric by which a behaviour is measured on them; runs components through trials.

    Attributes:
        model: The model.
        pairs: Clean prompts with their corrupted ones, or with none where only means are exchanged.
        spans: The spans of each pair.
        metric: The metric of unpatched runs.
        targets: Token ids for each prompt of the request, of the answer, then of the wrong answer.
        places: The hook points of all components.
        given_by: The prompts whose mean is given to these; None for none.
    """

    model: StandardizedTransformer
    pairs: Sequence[Pair]
    spans: Sequence[Sequence[Span]]
    metric: MetricName
    targets: Sequence[Sequence[Sequence[int]]] = ()
    places: Sequence[Place] = ()
    given_by: Behaviour | None = None
    _kept: dict[int, _Runs] = field(default_factory=dict, init=False, repr=False, compare=False)
    _averages: dict[Place, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _features: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _levels: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @torch.inference_mode()
    def baselines(self) -> Float[Tensor, "pair 2"]:
        """The metric of each clean and each corrupted run; of a clean one twice where there is no corrupted one."""
        found = [self._runs(index) for index in range(len(self.pairs))]
        return torch.tensor(
            [[float(run.numbers["value"]) for run in (runs.clean, runs.corrupted or runs.clean)] for runs in found]
        )

    @torch.inference_mode()
    def measure(
        self, components: Sequence[Component], trials: Sequence[Trial], work: Workload = _WORK
    ) -> Float[Tensor, "pair trial component"]:
        """The metric of every pair with each component exchanged in each way; on the CPU.

        Args:
            components: The components.
            trials: The ways.
            work: The size of batches, and where progress is reported, in runs.

        Raises:
            Unsupported: The model cannot do it; by name.
            InvalidRequest: Means are taken over prompts of different lengths.

        Source: Heimersheim and Nanda, "How to use and interpret activation patching" (2024), for both directions;
        Geiger et al., "Causal Abstractions of Neural Networks" (2021), for interchange interventions.
        """
        values = torch.empty(len(self.pairs), len(trials), len(components))
        each = len(trials) * len(components)
        order = sorted(range(len(trials)), key=lambda at: (trials[at].into, trials[at].metric))
        for index in range(len(self.pairs)):
            done = index * each
            for _, group in groupby(order, lambda at: (trials[at].into, trials[at].metric)):
                listed = list(group)
                report = partial(_report, work, done, len(self.pairs) * each)
                values[index, listed] = self._branch(index, components, [trials[at] for at in listed], work, report)
                done += len(listed) * len(components)
        return values

    @torch.inference_mode()
    def readings(self, component: Component, part: ComponentPart) -> Iterator[RunStates]:
        """The states and features of a part at its tokens, in the clean run of each pair, then in its corrupted one."""
        for index in range(len(self.pairs)):
            runs, at = self._runs(index), self._tokens(index, part)
            for run, positions in zip((runs.clean, runs.corrupted), zip(*at, strict=True), strict=True) if at else ():
                if run is not None:
                    yield _Reader(run).read(component, part, positions)

    @torch.inference_mode()
    def level(self, component: Component, part: ComponentPart) -> Tensor:
        """The mean over the tokens of a part, of all prompts, of what is exchanged there."""
        key = (part, None if component.basis is None else component.basis.name)
        if key not in self._levels:
            self._levels[key] = torch.cat([one.exchanged for one in self.readings(component, part)]).mean(0)
        return self._levels[key]

    def _branch(
        self,
        index: int,
        components: Sequence[Component],
        trials: Sequence[Trial],
        work: Workload,
        report: partial[None],
    ) -> Float[Tensor, "trial component"]:
        """The runs of one pair that change the same run and have the same metric."""
        runs, first = self._runs(index), trials[0]
        own = runs.clean if first.into == "clean" else runs.corrupted
        other = runs.corrupted if first.into == "clean" else runs.clean
        assert own is not None
        asked = reduce_to_metric(first.metric, self._targets(index) if first.metric != "kl" else ())
        unchanged = own.numbers["value"] if first.metric == self.metric else own.numbers["value"] * 0
        values = unchanged.float().repeat(len(trials) * len(components))
        own_reader, other_reader = _Reader(own), None if other is None else _Reader(other)
        edits = replace_states(self._replacements(index, own_reader, other_reader, components, trials))
        branches = Branches(
            self.model,
            own.given,
            edits,
            reduction=lambda order: asked,
            reference=reference_of(runs.clean) if first.metric == "kl" else None,
            work=work,
            own=own,
        )
        done = 0
        for batch in branches.run():
            require_finite(batch.numbers["total"], "logits")
            values[batch.rows] = batch.numbers["value"][1:].float()
            done += len(batch.rows)
            report(done)
        report(len(values))
        return values.reshape(len(trials), len(components)).cpu()

    def _replacements(
        self,
        index: int,
        own: _Reader,
        other: _Reader | None,
        components: Sequence[Component],
        trials: Sequence[Trial],
    ) -> Iterator[Replacement]:
        for row, (trial, component) in enumerate((trial, one) for trial in trials for one in components):
            for part in component.parts:
                if (found := self._replacement(index, row, own, other, component, part, trial)) is not None:
                    yield found

    def _replacement(
        self,
        index: int,
        row: int,
        own: _Reader,
        other: _Reader | None,
        component: Component,
        part: ComponentPart,
        trial: Trial,
    ) -> Replacement | None:
        """The states of a part that differ from the run's own; None if none do."""
        at = self._tokens(index, part)
        into = [clean if trial.into == "clean" else corrupted for clean, corrupted in at]
        before = own.read(component, part, into)
        if trial.source == "other":
            assert other is not None
            from_ = [corrupted if trial.into == "clean" else clean for clean, corrupted in at]
            after = other.read(component, part, from_).exchanged
        else:
            after = self._instead(trial.source, component, part, into, before)
        states = component.exchange(before, after, trial.strength)
        differing = (before.states != states).flatten(1).any(1).nonzero()[:, 0].tolist()
        units = None if part.unit is None else (part.unit,)
        if not differing:
            return None
        return Replacement(row, part.place, [into[one] for one in differing], states[differing], units)

    def _instead(
        self, source: StateOrigin, component: Component, part: ComponentPart, positions: Sequence[int], own: RunStates
    ) -> Tensor:
        """Replacements of a run's own states that no single other run has."""
        if source == "zero":
            return torch.zeros_like(own.exchanged)
        if source == "given":
            assert self.given_by is not None
            return self.given_by.level(component, part).expand_as(own.exchanged)
        if component.basis is not None:
            return self._mean_features(component, part)[positions]
        states = self._mean_states()[part.place][positions]
        return states if part.unit is None else states[:, [part.unit]]

    def _tokens(self, index: int, part: ComponentPart) -> list[tuple[int, int]]:
        pair = self.pairs[index]
        clean = len(pair.clean)
        return part.tokens(self.spans[index], (clean, clean if pair.corrupted is None else len(pair.corrupted)))

    def _targets(self, index: int) -> Sequence[Sequence[int]]:
        return self.targets[self.pairs[index].index] if self.targets else ()

    def _runs(self, index: int) -> _Runs:
        found = self._kept.get(index)
        if found is None:
            found = self._observe(index)
            if sum(map(len, self._kept.values())) + len(found) <= _MOST:
                self._kept[index] = found
        return found

    def _observe(self, index: int) -> _Runs:
        pair, places = self.pairs[index], in_order(self.places)
        asked = reduce_to_metric(self.metric, self._targets(index))
        run = partial(observe, self.model, places=places, reduction=asked, caching=True)
        compares = self.metric == "kl"
        clean = run(pair.clean, reference=Reference(pair.clean, None) if compares else None)
        reference = reference_of(clean) if compares else None
        corrupted = None if pair.corrupted is None else run(pair.corrupted, reference=reference)
        for one in (clean, corrupted):
            if one is not None:
                require_finite(one.numbers["total"], "logits")
        return _Runs(clean, corrupted)

    def _mean_states(self) -> Mapping[Place, Tensor]:
        if not self._averages:
            self._averages.update(observe_mean(self.model, [pair.clean for pair in self.pairs], in_order(self.places)))
        return self._averages

    def _mean_features(self, component: Component, part: ComponentPart) -> Tensor:
        """The mean activations over the clean runs, position by position: (position, latent)."""
        assert component.basis is not None
        name = component.basis.name
        if name not in self._features:
            total: Tensor | None = None
            for index, pair in enumerate(self.pairs):
                found = _Reader(self._runs(index).clean).read(component, part, range(len(pair.clean))).exchanged
                total = found if total is None else total + found
            assert total is not None
            self._features[name] = total / len(self.pairs)
        return self._features[name]


def _report(work: Workload, before: int, total: int, done: int) -> None:
    work.progress(before + done, total, "runs")
