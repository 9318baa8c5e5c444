"""Unpatched runs are made once for all patches of a pair, which give the numbers that runs made anew give."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nnterp_mcp.experiments.patching import run_cache as observations
from nnterp_mcp.experiments.patching.activation_patching import Patcher, Patching, make_grid
from nnterp_mcp.experiments.patching.path_patching import Receiver
from nnterp_mcp.model.loading import trials
from tests.engine.plain import FAMILIES
from tests.engine.test_executors import Subject, build
from tests.experiments.patching.test_activation_patching import ANSWER, WRONG, pair_of

TINY = [family for family in FAMILIES if family != "smollm2-135m"]


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(request.param, lambda: request.getfixturevalue("smollm2_folder"))
    torch.set_num_threads(before)


every_family = pytest.mark.parametrize("subject", TINY, indirect=True)
one_family = pytest.mark.parametrize("subject", ["llama"], indirect=True)


def patcher(subject: Subject, receivers: list[Receiver] | None = None) -> Patcher:
    pair = pair_of(subject)
    grid = make_grid(subject.model, [pair], ["layers_output"], layers=[1, -1], positions=[2, 4, -1])
    return Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]], receivers=receivers)


def forget(subject: Subject) -> None:
    """Lets rows of the model be tried anew."""
    trials.forget(subject.model.module)


def count_passes(subject: Subject, patching: Patcher) -> tuple[int, Patching]:
    """How many times the model begins to run, and what comes of it."""
    begun: list[None] = []
    hook = subject.model.module.get_input_embeddings().register_forward_hook(lambda *_: begun.append(None))
    try:
        found = patching.patch()
    finally:
        hook.remove()
    return len(begun), found


@one_family
def test_a_second_round_makes_none_of_them_again(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    patcher(subject).patch()  # what rows share is tried
    patching = patcher(subject)
    first, found = count_passes(subject, patching)
    again, same = count_passes(subject, patching)
    assert (first, again) == (3, 1)
    assert torch.equal(found.values, same.values)

    monkeypatch.setattr(observations, "_MOST", 0)
    patching = patcher(subject)
    assert [count_passes(subject, patching)[0] for _ in range(2)] == [3, 3]


@every_family
def test_keys_and_values_kept_are_those_of_a_run_of_their_own(subject: Subject) -> None:
    forget(subject)
    alone = patcher(subject).patch()
    kept = patcher(subject).patch()

    assert float((kept.values - alone.values).abs().max()) <= 1e-5 * max(1.0, float(alone.values.abs().max()))


@one_family
def test_paths_share_them_too(subject: Subject) -> None:
    forget(subject)
    first, alone = count_passes(subject, patcher(subject, []))
    second, kept = count_passes(subject, patcher(subject, []))

    assert second < first
    assert torch.allclose(kept.values, alone.values, atol=1e-5)
