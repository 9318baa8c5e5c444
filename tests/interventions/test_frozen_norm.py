"""Norms with a frozen scale against the norms themselves, of any weights, widths and sizes of states."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nnterp_mcp.interventions.frozen_norm import freeze_norm


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
