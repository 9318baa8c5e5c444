"""Lenses next to one another: the statistics of ranks."""

from __future__ import annotations

import torch

from nnterp_mcp.experiments.translated_lens.comparison import score_lenses


def test_ranks_become_shares_and_first_layers() -> None:
    plain = [[0, 40, 11, 10], [99, 9, 2, 1], [50, 30, 20, 12]]
    other = [[3, 4, 11, 1], [10, 9, 2, 1], [11, 11, 11, 11]]
    found, better = score_lenses(torch.tensor([plain, other]), 0, 10)

    assert [layer.mean for layer in found.in_top] == [0, 1 / 3, 1 / 3, 2 / 3]
    assert (found.share.mean, found.gain.mean, found.first.mean) == (4 / 12, 0, 3)
    assert (better.share.mean, better.gain.mean, better.first.mean) == (7 / 12, 3 / 12, 0)
    assert found.gain.low == found.gain.high == 0


def test_gains_that_cancel_are_exactly_zero() -> None:
    layers = 30
    reads = [[1] * count + [99] * (layers - count) for count in (7, 11, 13, 5, 2)]
    changed = [[1] * count + [99] * (layers - count) for count in (8, 12, 14, 1, 3)]
    ranks = torch.tensor([reads, changed])

    assert score_lenses(ranks, 0, 10)[1].gain.mean == 0
