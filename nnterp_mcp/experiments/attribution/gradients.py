"""Attribution of an answer to the tokens of a prompt: gradient × input, and integrated gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.forward import Capture, Plan, forward
from nnterp_mcp.engine.readouts.metrics import MetricName, make_metric
from nnterp_mcp.engine.readouts.reductions import take_all
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.attribution.path_integral import Point, integrate
from nnterp_mcp.experiments.attribution.recorded_pass import ENTRANCE, gradients, record
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch

Baseline = Literal["zero", "mean"]
Embeddings = Float[Tensor, "row position hidden"]

_AT_ONCE = 4096
"""Embeddings that are averaged at once."""


@dataclass(frozen=True)
class TokenAttribution:
    """The attributions of the tokens of one prompt, on the CPU.

    Attributes:
        values: The attribution of each token.
        metric: The metric of the prompt.
        baseline: The metric with every embedding replaced by the baseline; None where there is none.
        missed: What is missed on the pieces of the way from the baseline, added up with signs aside: at least as much
            as the gap, in which pieces may make up for one another.
        points: At how many points of that way slopes were taken.
    """

    values: Float[Tensor, " position"]
    metric: float
    baseline: float | None = None
    missed: float | None = None
    points: int | None = None

    @property
    def gap(self) -> float | None:
        """By how much the sum over tokens misses the difference from the baseline; completeness says 0."""
        return None if self.baseline is None else float(self.values.sum()) - (self.metric - self.baseline)


def multiply_gradients(
    model: StandardizedTransformer,
    work: Workload,
    targets: Sequence[Sequence[Sequence[int]]],
    metric: MetricName = "logit_difference",
) -> list[TokenAttribution]:
    """Gradient × input: the metric's slope along each token's embedding, times that embedding.

    To first order, what the metric would lose if the embedding shrank. It is local: where the model saturates, what
    decides has no slope. With a difference of logits it says why this rather than that (contrastive explanation).

    Args:
        model: The model.
        work: The prompts.
        targets: Token ids for each prompt: of the answer, then of the alternative.
        metric: The metric after the last token.

    Returns:
        The attributions, in the order of the prompts.

    Raises:
        InvalidRequest: The metric needs more categories than there are.

    Source: Shrikumar et al., "Not Just a Black Box" (2016); Yin and Neubig, "Interpreting Language Models with
    Contrastive Explanations" (2022).
    """
    measures = [_measure(metric, categories) for categories in targets]

    def run(batch: Batch, numbers: Sequence[int]) -> list[TokenAttribution]:
        slopes = _find_slopes(model, batch, work.plan, [measures[number] for number in numbers])
        products = (slopes.gradient.float() * slopes.embeddings.float()).sum(-1).cpu()
        rows = zip(products, batch.padding, slopes.metric.tolist(), strict=True)
        return [TokenAttribution(values[padding:], metric) for values, padding, metric in rows]

    return work.run(model, run)


def integrate_gradients(
    model: StandardizedTransformer,
    work: Workload,
    targets: Sequence[Sequence[Sequence[int]]],
    metric: MetricName = "logit_difference",
    *,
    steps: int = 32,
    baseline: Baseline = "mean",
) -> list[TokenAttribution]:
    """Integrated gradients: the slopes along the straight way from a baseline to the embeddings, times that way.

    Their sum is the metric less the baseline's, up to the integral's error, which `gap` and `missed` tell: allow more
    steps where these are not small. Steps go where they are needed: between two points the slopes must add up to what
    the metric rises, and where they miss most of it the way is halved, until next to nothing is missed. The states on
    the way are none that the model sees in use, and another baseline gives other numbers.

    Args:
        model: The model.
        work: The prompts.
        targets: Token ids for each prompt: of the answer, then of the alternative.
        metric: The metric after the last token.
        steps: Points between the ends of the way, at most.
        baseline: Every embedding's: zero, where norms have a singularity, or the mean over the vocabulary.

    Returns:
        The attributions, in the order of the prompts.

    Raises:
        InvalidRequest: The metric needs more categories than there are, or there is no step.

    Source: Sundararajan et al., "Axiomatic Attribution for Deep Networks" (2017), whose completeness says where steps
    are needed.
    """
    model.require("gradients")
    if steps < 1:
        raise InvalidRequest(f"integrated gradients take at least 1 step, and steps {steps} came.")
    start = _baseline(model, baseline)
    found: list[TokenAttribution] = []
    total = len(targets) * (steps + 2)  # the two ends of the way are more than was asked for
    for at, (prompt, categories) in enumerate(zip(work.prompts, targets, strict=True)):
        before = at * (steps + 2)
        own = replace(
            work,
            prompts=[prompt],
            progress=lambda done, _, unit, before=before: work.progress(before + done, total, unit),
        )
        found.append(_Path(model, own, _measure(metric, categories), start).integrate(steps))
    return found


Measure = Callable[[Float[Tensor, "row vocabulary"]], Float[Tensor, " row"]]


def _measure(metric: MetricName, categories: Sequence[Sequence[int]]) -> Measure:
    if metric == "kl":
        raise InvalidRequest(
            "the divergence from the run itself has no slope: take the metric logit_difference or log_probability."
        )
    return make_metric(metric, categories)


def _baseline(model: StandardizedTransformer, kind: Baseline) -> Float[Tensor, " hidden"]:
    """The embedding at the start of the path."""
    embed = model.anatomy.embed_tokens
    with torch.no_grad(), model.standing_down():
        if kind == "zero":
            return torch.zeros(model.hidden_size, device=model.device)
        rows = min(model.vocab_size, *(weight.shape[0] for weight in embed.module.parameters()))
        ids = torch.arange(rows, device=model.device)[:, None]
        parts = [embed.read_output(embed.module(chunk)).double().sum((0, 1)) for chunk in ids.split(_AT_ONCE)]
        return (torch.stack(parts).sum(0) / rows).float()


@dataclass(frozen=True)
class _Path:
    """The straight line from a baseline to the embeddings of one prompt, which is the workload."""

    model: StandardizedTransformer
    work: Workload
    measure: Measure
    start: Float[Tensor, " hidden"]

    @cached_property
    def _origin(self) -> Float[Tensor, "1 position hidden"]:
        """The embeddings that the model has, operations on them included."""
        plan = Plan({ENTRANCE: self.work.plan.edits.get(ENTRANCE, ())})
        captures = [Capture(ENTRANCE, take_all)]
        return forward(self.model, self.work.batch(self.model, [0]), plan, captures).values[0].clone()

    def integrate(self, steps: int) -> TokenAttribution:
        """The integral of the slopes, with the metric at both ends."""
        (prompt,) = self.work.prompts
        before = 0

        def evaluate(shares: Sequence[float]) -> list[Point]:
            nonlocal before
            begun, before = before, before + len(shares)
            return replace(
                self.work,
                prompts=[prompt] * len(shares),
                progress=lambda done, total, unit: self.work.progress(begun + done, total, unit),
            ).run(self.model, partial(self._points, shares), unit="steps")

        found = integrate(evaluate, steps + 2, max(1, self.work.batch_tokens // len(prompt.ids)))
        return TokenAttribution(found.values.float(), found.last, found.first, found.missed, found.points)

    def _points(self, shares: Sequence[float], batch: Batch, numbers: Sequence[int]) -> list[Point]:
        chosen = [shares[number] for number in numbers]
        start = self.start.to(self._origin)
        along = torch.tensor(chosen).to(start)[:, None, None]
        embeddings = start + along * (self._origin - start)
        found = _find_slopes(self.model, batch, self.work.plan, [self.measure] * len(chosen), embeddings)
        products = (found.gradient.double() * (self._origin - start).double()).sum(-1).cpu()
        singular = not self.start.any()  # norms of zeros
        rows = zip(chosen, found.metric.tolist(), products, strict=True)
        return [Point(at, metric, row if at or not singular else None) for at, metric, row in rows]


@dataclass(frozen=True)
class _Slopes:
    """The metric of each row of a batch, the embeddings that entered, and the metric's slope along them."""

    metric: Float[Tensor, " row"]
    embeddings: Embeddings
    gradient: Embeddings


def _find_slopes(
    model: StandardizedTransformer,
    batch: Batch,
    plan: Plan,
    measures: Sequence[Measure],
    embeddings: Embeddings | None = None,
) -> _Slopes:
    """Runs a batch forward and backward."""
    with gradients(model.module):
        found = record(model, batch, plan, embeddings=embeddings)
        metric = torch.cat([measure(found.logits[[row]]) for row, measure in enumerate(measures)])
        entered = found.states[ENTRANCE]
        (gradient,) = torch.autograd.grad(metric.sum(), [entered])
    return _Slopes(metric.detach(), entered.detach(), gradient)
