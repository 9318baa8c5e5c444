"""Recovery and its intervals, and the random cells beside the strongest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnterp_mcp.experiments.patching.activation_patching import Cell
from nnterp_mcp.experiments.patching.controls import draw_matched, strongest
from nnterp_mcp.experiments.statistics.bootstrap import average_draws, estimate_mean, estimate_recovery

CELLS = [Cell(site, layer, column) for site in ("keys", "values") for layer in range(3) for column in range(4)]


def test_recovery_is_the_ratio_of_means_from_corrupted_to_clean() -> None:
    clean, corrupted = torch.tensor([4.0, 2.0]), torch.tensor([0.0, -2.0])
    values = torch.stack([corrupted, clean, torch.tensor([2.0, 0.0]), torch.tensor([8.0, 2.0])], 1)
    found = estimate_recovery(values, clean, corrupted)

    assert found is not None
    assert [one.mean for one in found] == [0.0, 1.0, 0.5, 1.5]
    assert [(one.low, one.high) for one in found[:3]] == [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5)]
    assert found[3].low == 1.0
    assert found[3].high == 2.0
    assert estimate_recovery(values, clean, clean) is None


def test_one_prompt_has_no_interval() -> None:
    (found,) = estimate_mean(torch.tensor([[3.0]]))
    assert (found.mean, found.low, found.high) == (3.0, None, None)


def test_intervals_are_those_of_resampling() -> None:
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 2.0, 0.5]) + 1
    drawn = np.random.default_rng(0).choice(values.numpy(), size=(20_000, 40)).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)

    found = estimate_mean(values)
    assert [one.low for one in found] == pytest.approx(low, abs=0.05)
    assert [one.high for one in found] == pytest.approx(high, abs=0.05)
    assert [one.mean for one in found] == pytest.approx(values.mean(0).tolist())


def test_draws_of_noise_count_once_for_each_prompt() -> None:
    values = torch.tensor([[1.0], [3.0], [10.0], [20.0]])

    assert average_draws(values, [0, 0, 1, 1]).tolist() == [[2.0], [15.0]]
    assert torch.equal(average_draws(values, [5, 5, 5, 5]), values)


def test_the_strongest_are_those_that_move_most_either_way() -> None:
    effects = [0.0, -3.0, 1.0, 2.0, *[0.0] * 20]

    assert strongest(CELLS, effects, 2) == [CELLS[1], CELLS[3]]
    assert strongest(CELLS, effects, 9) == [CELLS[1], CELLS[3], CELLS[2]]


def test_the_strongest_may_be_of_one_sign() -> None:
    effects = [0.0, -3.0, 1.0, 2.0, *[0.0] * 20]

    assert strongest(CELLS, effects, 2, 1) == [CELLS[3], CELLS[2]]
    assert strongest(CELLS, effects, 2, -0.5) == [CELLS[1]]


@given(st.lists(st.sampled_from([0.0, 0.5, -1.0]), min_size=24, max_size=24), st.integers(1, 4))
def test_random_cells_are_as_many_of_the_same_sites_and_layers(effects: list[float], count: int) -> None:
    chosen = strongest(CELLS, effects, count)
    effective = [cell for cell, effect in zip(CELLS, effects, strict=True) if effect]
    drawn = draw_matched(effective, chosen, 5)

    assert len(drawn) in (0, 5)
    if len(effective) < 2 * len(chosen):
        assert not drawn
    assert len({frozenset(cells) for cells in drawn}) == len(drawn)
    for cells in drawn:
        assert len(set(cells)) == len(chosen)
        assert set(cells) <= set(effective) - set(chosen)
        for cell, other in zip(chosen, cells, strict=True):
            left = [one for one in effective if one.place == cell.place and one not in chosen and one not in cells]
            assert other.place == cell.place or not left


@pytest.mark.parametrize(("right", "count"), [(0, 10), (5, 10), (38, 40), (40, 40)])
def test_the_interval_is_wilsons(right: int, count: int) -> None:
    from scipy.stats import binomtest

    from nnterp_mcp.experiments.statistics.bootstrap import wilson_interval

    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)
