"""The runs of a claim's test against plain transformers with plain hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.metrics import make_metric
from nnterp_mcp.experiments.claims.components import Along, Component, ComponentPart
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
    moved = Along(rows)(own, other, 0.5)

    assert rows @ rows.T == pytest.approx(torch.eye(2), abs=1e-5)
    assert (moved - own) @ rows.T == pytest.approx(0.5 * (other - own) @ rows.T, abs=1e-5)
    assert (moved - own) - (moved - own) @ rows.T @ rows == pytest.approx(torch.zeros(3, 8), abs=1e-5)


def test_drawn_tokens_are_others_than_those_of_the_spans() -> None:
    spans = [Span("city", (3,), (3,)), Span("end", (5,), (6,))]
    part = ComponentPart(Place("mlps_output", 1), None, (0, 1), (0.1, 0.9))

    assert part.tokens(spans, (6, 7)) == [(0, 1), (4, 5)]
