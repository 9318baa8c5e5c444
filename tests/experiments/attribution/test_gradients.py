"""Gradients on tokens against plain transformers and plain autograd, one prompt and one step at a time."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine.readouts.metrics import MetricName
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.attribution.gradients import TokenAttribution, integrate_gradients, multiply_gradients
from nnterp_mcp.experiments.attribution.recorded_pass import gradients
from tests.engine.plain import FAMILIES
from tests.engine.test_executors import Subject, build

ANSWER, WRONG = [7, 9], [11]
TARGETS = [[ANSWER, WRONG]] * 3
TINY = [family for family in FAMILIES if family != "smollm2-135m"]


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(request.param, lambda: request.getfixturevalue("smollm2_folder"))
    torch.set_num_threads(before)


every_family = pytest.mark.parametrize("subject", TINY, indirect=True)
one_family = pytest.mark.parametrize("subject", ["llama"], indirect=True)
real = pytest.mark.parametrize("subject", ["smollm2-135m"], indirect=True)


def difference(logits: Tensor) -> Tensor:
    return logits[ANSWER].logsumexp(0) - logits[WRONG].logsumexp(0)


def log_probability(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)[ANSWER].logsumexp(0)


Measure = Callable[[Tensor], Tensor]


def slope(subject: Subject, embeddings: Tensor, measure: Measure) -> tuple[float, Tensor]:
    """The metric of embeddings, and its gradient."""
    leaf = embeddings.clone().requires_grad_()
    value = measure(subject.plain.model(inputs_embeds=leaf[None], use_cache=False).logits[0, -1])
    (gradient,) = torch.autograd.grad(value, leaf)
    return float(value.detach()), gradient


def embed(subject: Subject, ids: Sequence[int]) -> Tensor:
    return subject.plain.model.get_input_embeddings()(torch.tensor(ids)).detach()


def same(found: TokenAttribution, values: Tensor, metric: float) -> None:
    assert float(values.abs().max()) > 1e-5
    assert found.metric == pytest.approx(metric, abs=1e-5)
    assert float((found.values - values).abs().max()) <= 1e-5 * max(1.0, float(values.abs().max()))


@pytest.mark.parametrize(
    ("metric", "measure"), [("logit_difference", difference), ("log_probability", log_probability)]
)
@every_family
def test_gradient_times_input_is_that_of_plain_autograd(subject: Subject, metric: MetricName, measure: Measure) -> None:
    found = multiply_gradients(subject.model, Workload(subject.prompts), TARGETS, metric)

    for prompt, attribution in zip(subject.prompts, found, strict=True):
        embeddings = embed(subject, prompt.ids)
        value, gradient = slope(subject, embeddings, measure)
        same(attribution, (gradient * embeddings).sum(-1), value)
        assert attribution.gap is None


SETTLED = [("mean", family) for family in TINY] + [
    ("zero", family) for family in ("gpt2", "gpt_neox", "falcon", "bloom")
]
"""At zeros, stacked RMS norms bend the way within 1e-18 of its length, where a fine grid does not look."""


@pytest.mark.parametrize(("baseline", "subject"), SETTLED, indirect=["subject"])
def test_integrated_gradients_are_those_of_a_fine_grid_in_double_precision(subject: Subject, baseline: Any) -> None:
    prompt = subject.prompts[0]
    (found,) = integrate_gradients(
        subject.model, Workload([prompt], batch_tokens=16 * len(prompt.ids)), TARGETS[:1], steps=512, baseline=baseline
    )

    embeddings = embed(subject, prompt.ids)
    rows = subject.plain.model.get_input_embeddings().num_embeddings
    everything = embed(subject, list(range(min(rows, subject.model.vocab_size))))
    start = torch.zeros_like(embeddings) if baseline == "zero" else everything.mean(0).expand_as(embeddings)
    exact = copy.deepcopy(subject.plain.model).double()
    exact.set_attn_implementation("eager")  # the written-out one takes one prompt
    value, before = (slope(subject, end, difference)[0] for end in (embeddings, start))
    wanted = integral(exact, start.double(), embeddings.double()).float()
    assert found.metric == pytest.approx(value, abs=1e-5)
    unsettled = abs(float(wanted.sum()) - (value - before))
    assert unsettled < 0.02, "the fine grid itself"
    assert found.missed is not None
    bound = 1e-3 * max(1.0, float(wanted.abs().max())) + found.missed + unsettled
    assert float((found.values - wanted).abs().max()) <= bound <= 0.03
    assert found.baseline == pytest.approx(before, abs=1e-5)
    assert found.points is not None
    assert found.points <= 514


def integral(model: Any, start: Tensor, end: Tensor) -> Tensor:
    """The slopes from one point to another, by a Gauss rule on each of many pieces, shorter towards the start."""
    edges = np.concatenate([[0.0], np.geomspace(1e-3, 1.0, 16)])
    nodes, weights = np.polynomial.legendre.leggauss(16)
    total = torch.zeros(len(end), dtype=torch.float64)
    for low, high in itertools.pairwise(edges):
        shares = torch.tensor(low + (high - low) * (nodes + 1) / 2)
        leaf = (start + shares[:, None, None] * (end - start)).requires_grad_()
        logits = model(inputs_embeds=leaf, use_cache=False).logits[:, -1]
        (gradient,) = torch.autograd.grad(torch.stack([difference(row) for row in logits]).sum(), leaf)
        total += torch.tensor(weights) * (high - low) / 2 @ (gradient * (end - start)).sum(-1)
    return total


@pytest.mark.parametrize("subject", ["llama", "gemma2"], indirect=True)
def test_bends_next_to_zeros_are_found(subject: Subject) -> None:
    prompt = subject.prompts[0]
    (found,) = integrate_gradients(subject.model, Workload([prompt]), TARGETS[:1], steps=512, baseline="zero")
    start = torch.zeros(len(prompt.ids), subject.model.hidden_size)
    rise = slope(subject, embed(subject, prompt.ids), difference)[0] - slope(subject, start, difference)[0]
    assert float(found.values.sum()) == pytest.approx(rise, abs=0.02)


@one_family
def test_with_steps_enough_the_sum_is_the_difference(subject: Subject) -> None:
    gaps: list[float] = []
    for steps in (2, 64):
        found = integrate_gradients(subject.model, Workload(subject.prompts), TARGETS, steps=steps)
        for prompt, attribution in zip(subject.prompts, found, strict=True):
            ends = (embed(subject, list(range(subject.model.vocab_size))).mean(0), embed(subject, prompt.ids))
            before, after = (slope(subject, end.expand(len(prompt.ids), -1), difference)[0] for end in ends)
            assert attribution.gap == pytest.approx(float(attribution.values.sum()) - (after - before), abs=2e-5)
            assert abs(attribution.gap or 0.0) <= (attribution.missed or 0.0) + 1e-6
        gaps.append(max(abs(attribution.gap or 0.0) for attribution in found))

    assert gaps[0] > 1e-2
    assert gaps[1] < 1e-4


@one_family
def test_interventions_are_in_force(subject: Subject) -> None:
    vector = torch.randn(subject.model.hidden_size, generator=torch.Generator().manual_seed(0))
    operation = {"op": "project_out", "site": "layers_output", "layers": [1], "vector": vector.tolist()}
    found = multiply_gradients(subject.model, Workload(subject.prompts, subject.plan(operation)), TARGETS)

    def project(module: Any, args: Any, output: Any) -> Any:
        states = output if isinstance(output, Tensor) else output[0]
        direction = vector / vector.norm()
        later = states[:, 1:]  # every position but the first
        return torch.cat([states[:, :1], later - (later @ direction)[..., None] * direction], dim=1)

    hook = subject.plain.layers[1].register_forward_hook(project)
    try:
        for prompt, attribution in zip(subject.prompts, found, strict=True):
            embeddings = embed(subject, prompt.ids)
            value, gradient = slope(subject, embeddings, difference)
            same(attribution, (gradient * embeddings).sum(-1), value)
    finally:
        hook.remove()


@one_family
def test_weights_get_no_gradients_and_may_learn_again_after(subject: Subject) -> None:
    weights = list(subject.model.module.parameters())
    assert all(weight.requires_grad for weight in weights)
    multiply_gradients(subject.model, Workload(subject.prompts), TARGETS)

    assert all(weight.requires_grad and weight.grad is None for weight in weights)
    weights[0].requires_grad_(False)
    with gradients(subject.model.module):
        assert not any(weight.requires_grad for weight in weights)
    assert [weight.requires_grad for weight in weights] == [False] + [True] * (len(weights) - 1)
    weights[0].requires_grad_(True)


@one_family
def test_progress_counts_steps_and_may_end_it(subject: Subject) -> None:
    told: list[int] = []
    integrate_gradients(
        subject.model,
        Workload(subject.prompts, batch_tokens=10, progress=lambda count, total, unit: told.append(count)),
        TARGETS,
        steps=4,
    )
    assert told[-1] == 17, "5 points of 6 for the last of three prompts: an odd number always"
    assert told == sorted(set(told))

    def stop(done: int, total: int | None, unit: str) -> None:
        raise InvalidRequest("enough")

    with pytest.raises(InvalidRequest, match="enough"):
        multiply_gradients(subject.model, Workload(subject.prompts, progress=stop), TARGETS)


@one_family
def test_what_cannot_be_asked_is_refused(subject: Subject) -> None:
    with pytest.raises(InvalidRequest, match="at least 1 step, and steps 0 came"):
        integrate_gradients(subject.model, Workload(subject.prompts), TARGETS, steps=0)
    with pytest.raises(InvalidRequest, match="has no slope"):
        multiply_gradients(subject.model, Workload(subject.prompts), TARGETS, "kl")
    with pytest.raises(InvalidRequest, match="needs 2 target categories, and 1 came"):
        multiply_gradients(subject.model, Workload(subject.prompts), [[ANSWER]] * 3)


@real
@pytest.mark.slow
@pytest.mark.smollm2
def test_the_real_model_is_attributed_as_by_plain_autograd(subject: Subject) -> None:
    prompt = subject.prompts[0]
    (found,) = multiply_gradients(subject.model, Workload([prompt]), TARGETS[:1])
    embeddings = embed(subject, prompt.ids)
    value, gradient = slope(subject, embeddings, difference)

    assert found.metric == pytest.approx(value, abs=1e-4)
    wanted = (gradient * embeddings).sum(-1)
    assert float((found.values - wanted).abs().max()) <= 5e-5 * max(1.0, float(wanted.abs().max()))
    (whole,) = integrate_gradients(subject.model, Workload([prompt]), TARGETS[:1], steps=2, baseline="zero")
    assert whole.values.isfinite().all()
    assert whole.baseline == pytest.approx(slope(subject, torch.zeros_like(embeddings), difference)[0], abs=1e-4)
