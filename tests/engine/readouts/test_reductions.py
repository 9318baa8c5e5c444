"""Reductions beside the plain formula that they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnterp_mcp.engine.readouts.next_token import Categories, Readout
from nnterp_mcp.engine.readouts.reductions import compare_rows, expected, take_top


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 5),
    width=st.integers(1, 3000),
    k=st.integers(1, 12),
    block=st.sampled_from([1, 7, 32, 256]),
)
def test_the_top_tokens_are_those_of_a_full_sort(seed: int, rows: int, width: int, k: int, block: int) -> None:
    k = min(k, width)
    values = torch.stack(
        [torch.randperm(width, generator=torch.Generator().manual_seed(seed + row)) for row in range(rows)]
    )
    found, places = take_top(values.float(), k, block)
    ordered = values.sort(dim=-1, descending=True)

    assert torch.equal(found, ordered.values[:, :k].float())
    assert torch.equal(places, ordered.indices[:, :k])


def test_equal_values_are_taken_once_each() -> None:
    found, places = take_top(torch.zeros(2, 4096), 6)

    assert torch.equal(found, torch.zeros(2, 6))
    assert all(len(set(row)) == 6 for row in places.tolist())


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_what_has_no_probability_does_not_count(value: float) -> None:
    probs, values = (
        torch.tensor([[0.25, 0.0, 0.75], [0.5, 0.5, 0.0]]),
        torch.tensor([[1.0, value, 3.0], [1.0, 2.0, 5.0]]),
    )

    assert expected(probs, values).tolist() == [2.5, 1.5]


def test_rows_that_are_read_in_parts_are_the_rows_of_the_whole() -> None:
    """A vocabulary of which two rows are too many to be read together."""
    logits = torch.randn(5, 600_000, generator=torch.Generator().manual_seed(0)) * 4
    sets = [[[row, 599_999 - row], []] for row in range(5)]
    followed = Categories.of(sets, logits.device)
    options = {"rows": torch.arange(5), "baselines": None, "ids": followed.ids, "real": followed.real, "top_k": 3}
    numbers = compare_rows(logits, options, slice(None))
    assert numbers.pop("total").isfinite().all()
    found = Readout(**numbers)
    probs = logits.double().softmax(-1)
    ordered = probs.sort(dim=-1, descending=True)

    assert torch.equal(found.top_ids, ordered.indices[:, :3])
    assert torch.allclose(found.top_probs.double(), ordered.values[:, :3], atol=1e-7)
    assert torch.allclose(found.entropy.double(), -(probs * probs.log()).sum(-1), atol=1e-4)
    for row, ((one, other), _) in enumerate(sets):
        assert found.target_probs[row].tolist() == pytest.approx([float(probs[row, one] + probs[row, other]), 0])
        rank = 1 + int((probs[row] > max(probs[row, one], probs[row, other])).sum())
        assert found.target_ranks[row].tolist() == [rank, 0]
