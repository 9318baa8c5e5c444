"""Norms with a frozen scale against the norms themselves, of any weights, widths and sizes of states."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nnterp_mcp.experiments.attribution.linearize import freeze_norm


@given(
    width=st.integers(3, 40),
    size=st.floats(1e-2, 1e3),
    shift=st.floats(-3, 3),
    kind=st.sampled_from(["rms", "layer", "layer without bias", "layer without weights"]),
    seed=st.integers(0, 99),
)
def test_a_norm_is_the_linear_map_that_it_is_at_its_scale(
    width: int, size: float, shift: float, kind: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {"elementwise_affine": kind != "layer without weights", "bias": kind == "layer"}
    norm: nn.Module = nn.RMSNorm(width, eps=1e-6) if kind == "rms" else nn.LayerNorm(width, **weights)
    for parameter in norm.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    states = size * (torch.randn(3, width, generator=generator) + shift)
    direction = torch.randn(3, width, generator=generator).double()
    frozen = freeze_norm(norm, states)

    assert frozen.centres == (kind != "rms")
    whole = (norm(states).detach().double() * direction).sum(-1)
    found = (frozen.pull(direction) * states.double()).sum(-1) + (frozen.bias * direction).sum(-1)
    assert found.tolist() == pytest.approx(whole.tolist(), rel=1e-4, abs=1e-4 * width)
    halves = [(frozen.pull(direction) * part.double()).sum(-1) for part in (states * 0.3, states * 0.7)]
    assert (halves[0] + halves[1]).tolist() == pytest.approx(
        (whole - (frozen.bias * direction).sum(-1)).tolist(), rel=1e-4, abs=1e-4 * width
    )


@pytest.mark.parametrize("norm", [nn.RMSNorm(8, eps=1e-6), nn.LayerNorm(8)])
@pytest.mark.parametrize("state", [torch.zeros(8), torch.full((8,), 3.0)])
def test_a_state_that_a_norm_takes_to_zero_has_the_scale_of_a_small_one(norm: nn.Module, state: torch.Tensor) -> None:
    """What parts of it would write by themselves is finite, and adds up to what it writes."""
    for parameter in norm.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    direction = torch.randn(1, 8, generator=torch.Generator().manual_seed(1)).double()
    frozen = freeze_norm(norm, state[None])
    whole = (norm(state[None]).detach().double() * direction).sum()
    found = (frozen.pull(direction) * state.double()).sum() + (frozen.bias * direction).sum()
    assert float(found) == pytest.approx(float(whole), abs=1e-5)
    step = 1e-7 * torch.randn(1, 8, generator=torch.Generator().manual_seed(2)).double()
    change = (norm((state + step).float()).double() - norm(state[None]).double()).detach() if not state.any() else None
    if change is not None:
        assert float((frozen.pull(direction) * step).sum()) == pytest.approx(
            float((change * direction).sum()), rel=1e-2
        )
