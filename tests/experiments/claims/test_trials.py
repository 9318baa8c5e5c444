"""The runs of a claim's test against plain transformers with plain hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.metrics import make_metric
from nnterp_mcp.experiments.claims.components import Along, AsFarAlong, Component, ComponentPart, RunStates
from nnterp_mcp.experiments.claims.random_components import draw_subspaces
from nnterp_mcp.experiments.claims.trials import Behaviour, Trial
from nnterp_mcp.experiments.patching.alignment import Span, align
from nnterp_mcp.experiments.patching.corruption import Pair, pair_prompts
from nnterp_mcp.model.text.tokenization import encode_prompts
from tests.engine.plain import Edits
from tests.engine.test_executors import ROUNDING, TOLERANCE, Subject, build

CLEAN = ["The capital of France is", "The capital of France and"]
CORRUPTED = ["The capital of Spain is", "The capital of Spain and"]
TARGETS = [[7, 9], [11]]
HEAD = Component((ComponentPart(Place("heads_output", 1), 1), ComponentPart(Place("heads_output", 2), 0)))
MLP = Component((ComponentPart(Place("mlps_output", 1), None, (4,)),))
TRIALS = [
    Trial("clean", "other", "logit_difference"),
    Trial("clean", "other", "logit_difference", 0.25),
    Trial("corrupted", "other", "logit_difference"),
    Trial("clean", "mean", "logit_difference"),
    Trial("clean", "mean", "kl"),
]


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(request.param, lambda: request.getfixturevalue("smollm2_folder"))
    torch.set_num_threads(before)


def pairs_of(subject: Subject) -> list[Pair]:
    return pair_prompts(*(encode_prompts(subject.model.tokenizer, texts, "it") for texts in (CLEAN, CORRUPTED)))


def read(subject: Subject, ids: Any, key: tuple[str, int]) -> Tensor:
    found: list[Tensor] = []
    subject.plain.logits(ids, {key: lambda states: found.append(states.clone())})
    return found[0]


def expected(subject: Subject, pairs: list[Pair], at: int, component: Component, trial: Trial) -> float:
    """The metric of one exchange, written out with plain hooks."""
    corrupted = pairs[at].corrupted
    assert corrupted is not None
    sides: list[Any] = [pairs[at].clean.prompt.ids, corrupted.prompt.ids]
    own, other = sides if trial.into == "clean" else sides[::-1]
    edits: Edits = {}
    for part in component.parts:
        assert part.place.layer is not None
        key = (part.place.site, part.place.layer)
        now = read(subject, own, key)
        new = (
            torch.stack([read(subject, pair.clean.prompt.ids, key) for pair in pairs]).mean(0)
            if trial.source == "mean"
            else read(subject, other, key)
        )
        edits[key] = exchange(part, now + trial.strength * (new - now))
    metric = make_metric(trial.metric, TARGETS, subject.plain.logits(sides[0], {})[-1])
    return float(metric(subject.plain.logits(own, edits)[-1][None])[0])


def exchange(part: ComponentPart, new: Tensor) -> Callable[[Tensor], None]:
    heads: Any = slice(None) if part.unit is None else [part.unit]
    positions = range(len(new)) if part.spans is None else part.spans

    def edit(states: Tensor) -> None:
        for at in positions:
            states[at, heads] = new[at, heads]

    return edit


@pytest.mark.parametrize("subject", ["llama", "gpt2"], indirect=True)
def test_every_trial_is_that_of_plain_hooks(subject: Subject) -> None:
    pairs = pairs_of(subject)
    places = [part.place for component in (HEAD, MLP) for part in component.parts]
    behaviour = Behaviour(subject.model, pairs, align(pairs, ["all"]), "logit_difference", [TARGETS, TARGETS], places)
    values = behaviour.measure([HEAD, MLP], TRIALS)

    assert values.shape == (2, len(TRIALS), 2)
    for at in range(2):
        for trial, asked in enumerate(TRIALS):
            for number, component in enumerate((HEAD, MLP)):
                wanted = expected(subject, pairs, at, component, asked)
                assert float(values[at, trial, number]) == pytest.approx(
                    wanted, abs=ROUNDING.get(subject.family, TOLERANCE) * 10
                )
    assert (values[:, 0] - behaviour.baselines()[:, :1]).abs().min() > 1e-4


def test_a_direction_moves_states_along_itself_alone() -> None:
    own, other = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    (rows,) = draw_subspaces(8, 2, 1)
    moved = Along(rows)(RunStates(own), other, 0.5)

    assert rows @ rows.T == pytest.approx(torch.eye(2), abs=1e-5)
    assert (moved - own) @ rows.T == pytest.approx(0.5 * (other - own) @ rows.T, abs=1e-5)
    assert (moved - own) - (moved - own) @ rows.T @ rows == pytest.approx(torch.zeros(3, 8), abs=1e-5)


@pytest.mark.parametrize("subject", ["llama", "gpt2"], indirect=True)
def test_a_direction_is_ablated_and_given_as_by_plain_hooks(subject: Subject) -> None:
    """Without corrupted prompts: the coordinate set to zero, to half, and to the mean that other prompts have."""
    controls = ["The king of Spain is", "The river of Spain and"]
    sides = [encode_prompts(subject.model.tokenizer, texts, "it") for texts in (CLEAN, controls)]
    prompts = [Input(prompt) for side in sides for prompt in side]
    (rows,) = draw_subspaces(subject.model.hidden_size, 1, 1)
    part = ComponentPart(Place("layers_output", 1), after_first=True)
    component = Component((part,), Along(rows))

    def behaviour(some: list[Input], given_by: Behaviour | None = None) -> Behaviour:
        pairs = [Pair(one, None) for one in some]
        spans = align(pairs, {"all": (["all"], ["all"])})
        targets = [TARGETS] * len(pairs)
        return Behaviour(subject.model, pairs, spans, "logit_difference", targets, [part.place], given_by)

    own = behaviour(prompts[:2])
    ablated = own.measure([component], [Trial("clean", "zero", "logit_difference", one) for one in (1.0, 0.5)])
    given = behaviour(prompts[2:], own).measure([component], [Trial("clean", "given", "logit_difference")])

    key = ("layers_output", 1)
    level = torch.cat([read(subject, one.prompt.ids, key)[1:] for one in prompts[:2]]).mean(0) @ rows.T

    def plain(prompt: Input, wanted: Tensor, strength: float) -> float:
        def edit(states: Tensor) -> None:
            states[1:] += strength * (wanted - states[1:] @ rows.T) @ rows

        logits = subject.plain.logits(prompt.prompt.ids, {key: edit})[-1]
        return float(make_metric("logit_difference", TARGETS, logits)(logits[None])[0])

    close = ROUNDING.get(subject.family, TOLERANCE) * 10
    for at in range(2):
        wanted = [plain(prompts[at], torch.zeros(1), strength) for strength in (1.0, 0.5)]
        assert ablated[at, :, 0].tolist() == pytest.approx(wanted, abs=close)
        assert float(given[at, 0, 0]) == pytest.approx(plain(prompts[2 + at], level, 1.0), abs=close)
    assert (ablated[:, 0, 0] - own.baselines()[:, 0]).abs().min() > 1e-5


def test_a_direction_of_equal_norm_moves_states_as_far() -> None:
    own, other = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    rows, (along,) = draw_subspaces(8, 1, 2)
    moved = Along(rows)(RunStates(own), other, 0.5) - own
    control = AsFarAlong(Along(rows), along)(RunStates(own), other, 0.5) - own

    assert control.norm(dim=-1) == pytest.approx(moved.norm(dim=-1), abs=1e-5)
    assert control == pytest.approx(control.norm(dim=-1, keepdim=True) * along, abs=1e-5)


def test_drawn_tokens_are_others_than_those_of_the_spans() -> None:
    spans = [Span("city", (3,), (3,)), Span("end", (5,), (6,))]
    part = ComponentPart(Place("mlps_output", 1), None, (0, 1), (0.1, 0.9))

    assert part.tokens(spans, (6, 7)) == [(0, 1), (4, 5)]
