"""Directions against plain transformers with plain hooks, and against the definition of each method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.statistics.separability import separate
from nnterp_mcp.experiments.steering_vectors import (
    MeanStates,
    activation,
    average_states,
    given_directions,
    mean_difference,
    principal_component,
    random_direction,
    spread_over_layers,
    token_difference,
)
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.request.operations import TokenDifference
from nnterp_mcp.request.positions import PositionSpec, TextPosition
from tests.conftest import FAMILIES
from tests.experiments.test_logit_lens import TAILS

JOY = ["I am so happy today, what a wonderful", "The party was full of laughter and", "We won the game and"]
GRIEF = ["I am so sad today, what a terrible", "The funeral was full of weeping and", "We lost it and"]


@dataclass
class Subject:
    """A model twice: plain and standardized."""

    family: str
    plain: Any
    model: StandardizedTransformer

    @torch.no_grad()
    def states(self, text: str) -> Tensor:
        """The residual stream after every layer by hooks, (layer, position, hidden)."""
        found: list[Tensor] = []
        hooks = [
            block.register_forward_hook(
                lambda module, inputs, output: found.append(output[0] if isinstance(output, tuple) else output)
            )
            for block in TAILS[self.family][0](self.plain)
        ]
        self.plain(torch.tensor([self.model.tokenizer(text)["input_ids"]]))
        for hook in hooks:
            hook.remove()
        return torch.cat(found)

    def means(self, texts: Sequence[str], at: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([at(self.states(text)) for text in texts])

    def work(self, texts: Sequence[str], **options: Any) -> Workload:
        return Workload(encode_prompts(self.model.tokenizer, texts, self.model.name), **options)


@pytest.fixture(scope="module", params=[*FAMILIES, "smollm2-135m"])
def subject(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Subject:
    family = request.param
    folder = tiny(family) if family in FAMILIES else request.getfixturevalue("smollm2_folder")
    plain, ours = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    model = StandardizedTransformer(ours, tokenizer=AutoTokenizer.from_pretrained(folder), name=family)
    return Subject(family, plain, model)


@torch.no_grad()
def close(ours: Tensor, expected: Tensor) -> bool:
    return bool((ours - expected).norm() < 1e-5 * max(1.0, float(expected.norm())))


@pytest.mark.parametrize(
    ("positions", "at"),
    [
        (("last",), lambda states: states[:, -1]),
        (("all",), lambda states: states[:, 1:].mean(1)),
        (("0:",), lambda states: states.mean(1)),
        (("-3:",), lambda states: states[:, -3:].mean(1)),
        ((0, -2), lambda states: states[:, [0, -2]].mean(1)),
    ],
)
def test_states_are_those_of_plain_hooks(
    subject: Subject, positions: Sequence[PositionSpec], at: Callable[[Tensor], Tensor]
) -> None:
    layers = range(subject.model.num_layers)
    found = average_states(subject.model, subject.work(JOY), layers, positions)
    few = average_states(
        subject.model,
        subject.work(JOY, batch_tokens=1),
        [0, 2],
        positions,
    )

    expected = subject.means(JOY, at)
    assert close(found.means, expected)
    assert close(few.means, expected[:, [0, 2]])
    lengths = subject.means(JOY, lambda states: at(states.norm(dim=-1, keepdim=True)))[..., 0]
    assert close(found.lengths, lengths)
    assert len({round(float(length), 3) for length in lengths[:, 0]}) > 1


def test_states_at_a_piece_of_text(subject: Subject) -> None:
    found = average_states(
        subject.model,
        subject.work(["We won the game and"]),
        [1],
        [TextPosition(text="and")],
    )

    assert close(found.means, subject.means(["We won the game and"], lambda states: states[:, -1])[:, [1]])


def test_mean_difference(subject: Subject) -> None:
    sets = [average_states(subject.model, subject.work(texts), [0, 1, 3]) for texts in (JOY, GRIEF)]
    made = mean_difference(*sets)

    means = [subject.means(texts, lambda states: states[:, -1]).mean(0)[[0, 1, 3]] for texts in (JOY, GRIEF)]
    assert made.layers == [0, 1, 3]
    assert close(made.vectors, means[0] - means[1])
    assert close(made.norms, (means[0] - means[1]).norm(dim=-1))
    assert close(made.scaled(2.5).norms, torch.full((3,), 2.5))


def test_mean_difference_of_sets_of_unequal_size(subject: Subject) -> None:
    made = mean_difference(
        average_states(subject.model, subject.work(JOY), [1]),
        average_states(subject.model, subject.work(GRIEF[:1]), [1]),
    )

    expected = subject.means(JOY, lambda states: states[1, -1]).mean(0) - subject.states(GRIEF[0])[1, -1]
    assert close(made.vectors[0], expected)


def test_principal_component(subject: Subject) -> None:
    sets = [average_states(subject.model, subject.work(texts), range(4)) for texts in (JOY, GRIEF)]
    made = principal_component(*sets)

    states = [subject.means(texts, lambda states: states[:4, -1]) for texts in (JOY, GRIEF)]
    differences = (states[0] - states[1]).transpose(0, 1).double()
    _, values, directions = torch.linalg.svd(differences, full_matrices=False)
    along = (differences.mean(1) * directions[:, 0]).sum(-1, keepdim=True)
    assert torch.allclose(
        made.vectors.double(), along * directions[:, 0], rtol=1e-3, atol=1e-3 * float(along.abs().max())
    )
    assert made.explained is not None
    assert torch.allclose(made.explained.double(), values[:, 0] ** 2 / (values**2).sum(-1), atol=1e-3)
    assert ((made.vectors * differences.mean(1)).sum(-1) > 0).all()


def test_principal_component_needs_pairs(subject: Subject) -> None:
    sets = [average_states(subject.model, subject.work(texts), [0]) for texts in (JOY, GRIEF[:2])]

    with pytest.raises(InvalidRequest, match="3 positive and 2 negative prompts are no pairs"):
        principal_component(*sets)


def test_activation(subject: Subject) -> None:
    made = activation(average_states(subject.model, subject.work(JOY[:1]), [2]))

    assert close(made.vectors, subject.states(JOY[0])[[2], -1])


@pytest.mark.parametrize("of", ["embeddings", "unembeddings"])
def test_token_difference(subject: Subject, of: str) -> None:
    asked = TokenDifference.model_validate({"positive": " Paris", "negative": " Spain and Madrid", "of": of})
    made = token_difference(subject.model, asked)

    owner = subject.plain.get_input_embeddings() if of == "embeddings" else subject.plain.get_output_embeddings()
    rows = [
        owner.weight[subject.model.tokenizer(text, add_special_tokens=False)["input_ids"]].mean(0)
        for text in (" Paris", " Spain and Madrid")
    ]
    assert made.layers == []
    assert close(made.vectors[0], rows[0] - rows[1])


def test_equal_sets_have_no_direction(subject: Subject) -> None:
    states = average_states(subject.model, subject.work(JOY), [1, 2])

    with pytest.raises(InvalidRequest, match="the difference of the two sets is zero or not finite after layer 1"):
        mean_difference(states, states)
    with pytest.raises(InvalidRequest, match="have the same tokens"):
        token_difference(subject.model, TokenDifference(positive=" a", negative=" a"))


def test_what_a_batch_raises_ends_the_reading(subject: Subject) -> None:
    class Enough(Exception):
        pass

    def stop(done: int, total: int | None, unit: str) -> None:
        raise Enough

    with pytest.raises(Enough):
        average_states(
            subject.model,
            subject.work(
                JOY,
                progress=stop,
            ),
            [0],
        )


def test_random_directions_are_reproducible() -> None:
    first, again, other = (random_direction(64, 3.5, seed).vectors for seed in (1, 1, 2))

    assert torch.equal(first, again)
    assert abs(float(first.norm()) - 3.5) < 1e-5
    assert abs(float(torch.nn.functional.cosine_similarity(first, other))) < 0.5


@pytest.mark.parametrize(
    ("numbers", "layers", "expected"),
    [
        (torch.ones(8), [0, 1], []),
        (torch.ones(1, 8), [3], []),
        (torch.ones(2, 8), [1, 3], [1, 3]),
    ],
)
def test_given_directions(numbers: Tensor, layers: list[int], expected: list[int]) -> None:
    made = given_directions(numbers, 8, layers, "numbers.json")

    assert made.layers == expected
    assert made.vectors.shape == (len(expected) or 1, 8)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (torch.ones(7), r"has the shape \(7,\): give \(8,\), or \(layers, 8\)"),
        (torch.ones(3, 8), "has 3 directions for 2 layers"),
        (torch.ones(2, 2, 8), "has the shape"),
        (torch.tensor([[1.0] * 8, [0.0] * 8]), "is zero or not finite after layer 5"),
        (torch.tensor([1.0, torch.nan] * 4), "is zero or not finite"),
    ],
)
def test_given_directions_that_do_not_fit(numbers: Tensor, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        given_directions(numbers, 8, [4, 5], "numbers.json")


def test_spread_over_layers() -> None:
    assert torch.equal(spread_over_layers(torch.ones(1, 4), [], 3), torch.ones(4))
    rows = spread_over_layers(torch.ones(1, 4), [1], 3)
    assert rows.shape == (3, 4)
    assert rows.isnan().any(-1).tolist() == [True, False, True]


def difference(positive: Tensor, negative: Tensor) -> Tensor:
    return positive.mean(0) - negative.mean(0)


def test_separation_is_that_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(4, 2, 8, generator=generator) for _ in range(2))
    positive = positive + 0.5
    found = separate(positive, negative, difference)

    for layer in range(2):
        direction = difference(positive, negative)[layer]
        unit = direction / direction.norm()
        sets = [[float(unit @ state) for state in states[:, layer]] for states in (positive, negative)]
        means = [sum(values) / 4 for values in sets]
        pooled = sum(sum((value - mean) ** 2 for value in values) for values, mean in zip(sets, means, strict=True)) / 6
        ordered = 0
        for left in range(4):
            kept = [index for index in range(4) if index != left]
            without = difference(positive[kept], negative[kept])[layer]
            ordered += bool(without @ positive[left, layer] > without @ negative[left, layer])
        assert abs(float(found.positive[layer]) - means[0]) < 1e-5
        assert abs(float(found.negative[layer]) - means[1]) < 1e-5
        assert abs(float(found.effect[layer]) - (means[0] - means[1]) / pooled**0.5) < 1e-4
        assert float(found.held_out[layer]) == ordered / 4


def test_only_what_is_held_out_sees_through_sets_that_differ_in_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    sets = torch.randn(2, 10, 50, 512, generator=generator)
    found = separate(sets[0], sets[1], difference)

    assert found.effect.min() > 3
    assert abs(float(found.held_out.mean()) - 0.5) < 0.06


def test_sets_of_one_have_no_spread() -> None:
    found = separate(torch.ones(1, 2, 4), torch.zeros(3, 2, 4), difference)

    assert found.effect.isnan().all()
    assert found.held_out.isnan().all()
    assert found.positive.tolist() == [2.0, 2.0]


def test_states_are_kept_apart_by_prompt() -> None:
    states = MeanStates(
        [0], torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]]]), [[0], [2]], [torch.ones(1, 1), torch.full((1, 1), 5.0)]
    )

    assert activation(states).vectors.tolist() == [[2.0, 2.0]]
    assert activation(states).stream is not None
