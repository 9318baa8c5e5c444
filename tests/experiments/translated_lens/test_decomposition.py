"""Decompositions into token directions against plain torch, with every direction and descent in place of a solver."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.translated_lens import decomposition
from nnterp_mcp.experiments.translated_lens.decomposition import TokenDirections, decompose_states, rotate_at_random
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation
from tests.engine.test_executors import Subject, build

LAYER = 1


@pytest.fixture(scope="module")
def subject() -> Subject:
    return build("llama", Path)


@pytest.fixture(scope="module")
def lens(subject: Subject) -> LensTranslation:
    source = torch.Generator().manual_seed(3)
    width = subject.model.hidden_size
    return LensTranslation("jacobian", {LAYER: torch.randn(width, width, generator=source) / width**0.5}, {})


def plain_directions(subject: Subject, lens: LensTranslation) -> Tensor:
    return (subject.model.module.get_parameter("lm_head.weight").detach() @ lens.matrices[LAYER]).double()


def plain_pursuit(state: Tensor, directions: Tensor, count: int) -> tuple[list[int], Tensor, list[float]]:
    """Matching pursuit of one state with the whole matrix of directions, its weights by many steps of descent."""
    units = directions / directions.norm(dim=-1, keepdim=True)
    chosen: list[int] = []
    weights, left, explained = torch.zeros(0, dtype=torch.float64), state, []
    for _ in range(count):
        order = (units @ left).argsort(descending=True).tolist()
        chosen.append(next(token for token in order if token not in chosen))
        own, weights = units[chosen], torch.zeros(len(chosen), dtype=torch.float64)
        step = 1 / torch.linalg.eigvalsh(own @ own.T)[-1]
        for _ in range(1500):
            weights = (weights + step * (own @ (state - weights @ own))).clamp_min(0)
        left = state - weights @ own
        explained.append(float(1 - left.square().sum() / state.square().sum()))
    return chosen, weights / state.norm(), explained


@pytest.mark.parametrize("numbers", [1 << 23, 600])
def test_it_is_matching_pursuit_over_all_directions(
    subject: Subject, lens: LensTranslation, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decomposition, "_AT_ONCE", numbers)  # of the vocabulary in one part, or in many
    states = torch.randn(3, subject.model.hidden_size, generator=torch.Generator().manual_seed(1))

    found = decompose_states(states, TokenDirections.of(subject.model, lens, LAYER), 5)

    for at, state in enumerate(states.double()):
        tokens, weights, explained = plain_pursuit(state, plain_directions(subject, lens), 5)
        assert found.tokens[at].tolist() == tokens
        torch.testing.assert_close(found.weights[at].double(), weights, atol=1e-5, rtol=0)
        assert found.explained[at].tolist() == pytest.approx(explained, abs=1e-6)
        assert explained == sorted(explained)


def test_a_sum_of_directions_is_found_again_and_a_rotated_one_is_not(subject: Subject, lens: LensTranslation) -> None:
    every = plain_directions(subject, lens)
    units = every / every.norm(dim=-1, keepdim=True)
    state = (3 * units[7] + 2 * units[90]).float()[None]
    directions = TokenDirections.of(subject.model, lens, LAYER)

    found = decompose_states(state, directions, 2)
    control = decompose_states(rotate_at_random(state), directions, 2)

    assert set(found.tokens[0].tolist()) == {7, 90}
    assert float(found.explained[0, -1]) == pytest.approx(1, abs=1e-6)
    assert float(control.explained[0, -1]) < 0.7
    assert float(rotate_at_random(state).norm()) == pytest.approx(float(state.norm()), rel=1e-5)


def test_the_plain_lens_has_the_rows_of_the_unembedding(subject: Subject, lens: LensTranslation) -> None:
    head = subject.model.module.get_parameter("lm_head.weight")
    plain, last = TokenDirections.of(subject.model), TokenDirections.of(subject.model, lens, 3)

    for directions in (plain, last):  # the last layer is read as it is
        assert torch.equal(directions.rows(torch.tensor([4, 9])), head[[4, 9]])
    found = decompose_states(torch.zeros(1, subject.model.hidden_size), plain, 2)
    assert found.tokens.tolist() == [[-1, -1]]
    assert not found.weights.any()
    with pytest.raises(InvalidRequest, match="has no layer 2"):
        TokenDirections.of(subject.model, lens, 2)
    with pytest.raises(InvalidRequest, match="states of width 3"):
        decompose_states(torch.zeros(1, 3), plain, 2)
