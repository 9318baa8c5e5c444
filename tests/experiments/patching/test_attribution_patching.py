"""Attribution patching against plain hooks and plain autograd, and its comparison against patches with plain hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.patching.activation_patching import Cell, Patcher, make_grid
from nnterp_mcp.experiments.patching.attribution_patching import compare_with_patches, estimate_effects
from nnterp_mcp.experiments.patching.corruption import ablate, add_noise
from nnterp_mcp.model.text.tokenization import encode_prompts
from tests.engine.test_executors import MISSING, Subject, build
from tests.experiments.patching.test_activation_patching import (
    ANSWER,
    BY_UNIT,
    CLEAN,
    SITES,
    WRONG,
    expected,
    noisy,
    pair_of,
)

FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "falcon", "opt"]


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(request.param, lambda: request.getfixturevalue("smollm2_folder"))
    torch.set_num_threads(before)


every_family = pytest.mark.parametrize("subject", FAMILIES, indirect=True)
one_family = pytest.mark.parametrize("subject", ["llama"], indirect=True)
TARGETS = [[ANSWER, WRONG]]


def difference(logits: Tensor) -> Tensor:
    return logits[ANSWER].logsumexp(0) - logits[WRONG].logsumexp(0)


def expected_effects(
    subject: Subject, own: Input, other: Input, cells: Sequence[Cell], positions: Sequence[int], by_head: bool
) -> list[float]:
    """(other − own) · slope for each cell, computed with plain hooks and plain autograd."""
    keys = list({(cell.site, cell.layer): None for cell in cells})
    mine = subject.plain.slopes(own.prompt.ids, keys, difference, noisy(own))
    theirs = subject.plain.slopes(other.prompt.ids, keys, difference, noisy(other))
    found: list[float] = []
    for cell in cells:
        states, slope = mine[cell.site, cell.layer]
        products = (theirs[cell.site, cell.layer][0].double() - states.double()) * slope.double()
        found.append(
            float(products[positions, cell.column].sum() if by_head else products[positions[cell.column]].sum())
        )
    return found


def close(found: Tensor, wanted: Sequence[float]) -> None:
    largest = max(map(abs, wanted))
    assert largest > 1e-3
    assert found.tolist() == pytest.approx(list(wanted), abs=1e-5 * max(1.0, largest))


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@every_family
def test_estimates_are_those_of_plain_autograd(subject: Subject, direction: Any) -> None:
    pair = pair_of(subject)
    assert pair.corrupted is not None
    own, other = (pair.clean, pair.corrupted) if direction == "noising" else (pair.corrupted, pair.clean)
    sites: Any = [site for site in SITES if (subject.family, site) not in MISSING]
    positions = [2, 4, 7, 10]
    grid = make_grid(subject.model, [pair], sites, layers=[1, 2], positions=positions)
    found = estimate_effects(Patcher(subject.model, [pair], grid, direction, targets=TARGETS))

    close(found.effects[0], expected_effects(subject, own, other, grid.cells, positions, by_head=False))
    assert all(effect == 0 for cell, effect in zip(grid.cells, found.effects[0], strict=True) if cell.column == 0)
    for metric, given in ((found.clean, pair.clean), (found.corrupted, pair.corrupted)):
        logits = subject.plain.logits(given.prompt.ids, {})[-1]
        assert float(metric) == pytest.approx(float(difference(logits)), abs=1e-5)

    by_unit: Any = [site for site in BY_UNIT if (subject.family, site) not in MISSING]
    grid = make_grid(subject.model, [pair], by_unit, layers=[1, 2], positions=["2:"], heads="all")
    found = estimate_effects(Patcher(subject.model, [pair], grid, direction, targets=TARGETS))
    where = range(2, len(pair.clean))
    close(found.effects[0], expected_effects(subject, own, other, grid.cells, list(where), by_head=True))


@one_family
def test_noise_is_what_the_embeddings_of_the_corrupted_run_have(subject: Subject) -> None:
    (pair,) = add_noise(
        subject.model, encode_prompts(subject.model.tokenizer, [CLEAN], "it"), [3], scale=0.5, samples=1
    )
    assert pair.corrupted is not None
    grid = make_grid(subject.model, [pair], ["layers_output"], layers=[0, 2], positions=[3, -1])
    found = estimate_effects(Patcher(subject.model, [pair], grid, targets=TARGETS))

    wanted = expected_effects(subject, pair.corrupted, pair.clean, grid.cells, [3, 10], by_head=False)
    close(found.effects[0], wanted)


@one_family
def test_the_comparison_is_with_real_patches(subject: Subject) -> None:
    pair = pair_of(subject)
    assert pair.corrupted is not None
    grid = make_grid(subject.model, [pair], ["layers_output", "mlps_output"])
    patcher = Patcher(subject.model, [pair], grid, targets=TARGETS)
    estimates = estimate_effects(patcher)
    found = compare_with_patches(patcher, estimates, count=5)

    assert found is not None
    assert found.strongest == 5
    assert len(set(found.cells)) == 10
    order = sorted(range(len(grid.cells)), key=lambda at: -abs(float(estimates.effects[0, at])))
    assert found.cells[:5] == order[:5]
    base = difference(subject.plain.logits(pair.corrupted.prompt.ids, {})[-1])
    wanted = [
        float(difference(expected(subject, pair.corrupted, pair.clean, [grid.cells[at]], range(11))) - base)
        for at in found.cells
    ]
    assert found.effects[0].tolist() == pytest.approx(wanted, abs=2e-5)
    both = torch.tensor([wanted, estimates.effects[0, found.cells].tolist()])
    assert found.pearson == pytest.approx(float(torch.corrcoef(both)[0, 1]), abs=1e-4)
    assert found.agreement == float((both[0].sign() == both[1].sign())[:5].float().mean())


@one_family
def test_the_last_layer_is_estimated_as_patched_where_only_the_norm_bends(subject: Subject) -> None:
    """A small change is what its first order says: noise of 1e-3 of the embeddings, restored."""
    prompts = encode_prompts(subject.model.tokenizer, [CLEAN], "it")
    pairs = add_noise(subject.model, prompts, ["all"], scale=1e-3, samples=3)
    grid = make_grid(subject.model, pairs, ["layers_output"], layers=[2], positions=[-1, -2])
    patcher = Patcher(subject.model, pairs, grid, targets=TARGETS)
    estimates = estimate_effects(patcher)
    patched = patcher.patch()

    assert patched.corrupted is not None
    effects = patched.values - patched.corrupted[:, None]
    assert float((estimates.effects - effects).abs().max()) <= 0.02 * float(effects.abs().max())
    assert float(effects.abs().max()) > 1e-5


@one_family
def test_equal_runs_have_no_effects_and_nothing_to_compare(subject: Subject) -> None:
    pair = pair_of(subject, CLEAN, CLEAN)
    grid = make_grid(subject.model, [pair], ["layers_output", "keys"])
    patcher = Patcher(subject.model, [pair], grid, targets=TARGETS)
    estimates = estimate_effects(patcher)

    assert not estimates.effects.any()
    assert compare_with_patches(patcher, estimates) is None


@one_family
def test_what_has_no_slope_is_refused(subject: Subject) -> None:
    pair = pair_of(subject)
    grid = make_grid(subject.model, [pair], ["layers_output"], layers=[1])
    with pytest.raises(InvalidRequest, match="no slope at the clean run"):
        estimate_effects(Patcher(subject.model, [pair], grid, "noising", metric="kl"))
    with pytest.raises(Unsupported, match="attribution patching takes pairs of unedited runs"):
        estimate_effects(Patcher(subject.model, ablate([pair.clean.prompt]), grid, ablation="zero", metric="kl"))
    assert estimate_effects(Patcher(subject.model, [pair], grid, metric="kl")).effects.any()
