"""Vectors made of what a run of `collect_activations` kept: those that its prompts give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.toolset.make_vector import SPEC
from nnterp_mcp.worker.workbench import Bench
from tests.toolset.test_collect_activations import collect
from tests.toolset.test_make_vector import GRIEF, JOY, ask, make_bench

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


@pytest.mark.parametrize("positions", ["last", "-2:", "all"])
@pytest.mark.parametrize("method", ["mean_difference", "principal_component", "activation"])
def test_a_run_gives_what_its_prompts_give(bench: Bench, method: str, positions: str) -> None:
    import torch

    run_id, _ = collect(bench, prompts={"joy": JOY, "grief": GRIEF}, positions=positions)
    sides: dict[str, Any] = {"positive": JOY} | ({} if method == "activation" else {"negative": GRIEF})
    groups: dict[str, Any] = {side: "joy" if side == "positive" else "grief" for side in sides}
    direct = ask(bench, name="direct", method=method, positions=positions, layers=[1, 3], **sides)
    recalled = ask(bench, name="recalled", method=method, run=run_id, layers=[1, 3], **groups)

    assert (recalled.prompts, recalled.card.layers) == (direct.prompts, [1, 3])
    for found, expected in zip(recalled.directions, direct.directions, strict=True):
        figures = {name: value for name, value in expected.model_dump().items() if value is not None}
        assert found.model_dump(exclude_none=True) == pytest.approx(figures, rel=1e-4, abs=1e-5)
    one, other = (bench.find_vector(name)[[1, 3]] for name in ("recalled", "direct"))
    assert torch.allclose(one, other, atol=1e-5)
    if method != "activation":
        assert ask(bench, name="unnamed", method=method, run=run_id, layers=[1, 3]).card.norms == recalled.card.norms
        ask(bench, name="back", method=method, run=run_id, positive="grief", negative="joy")
        assert torch.allclose(bench.find_vector("back")[3], -one[1], atol=1e-5)


def test_what_was_in_force_in_the_run_is_told(bench: Bench) -> None:
    edit = {"op": "zero", "site": "mlps_output", "layers": 1}
    run_id, _ = collect(bench, prompts=JOY, pool="mean", positions="all", interventions=[edit])
    made = ask(bench, name="edited", method="activation", run=run_id)

    assert "Active interventions: zero at mlps_output, layer 1, all positions, every step." in SPEC.digest(made).notes
    assert made.card.norms != ask(bench, name="plain", method="activation", positive=JOY, positions="all").card.norms


def test_a_run_that_does_not_fit_is_refused(bench: Bench) -> None:
    run_id, _ = collect(bench, prompts={"joy": JOY, "grief": GRIEF, "more": ["We"]}, layers=[1])
    with pytest.raises(InvalidRequest, match=f"{run_id} has no group 'fear': its groups are 'joy', 'grief', 'more'"):
        ask(bench, name="it", method="mean_difference", run=run_id, positive="fear", negative="joy")
    with pytest.raises(InvalidRequest, match=r"mean_difference takes 2 of the groups of .* and 0 came"):
        ask(bench, name="it", method="mean_difference", run=run_id)
    with pytest.raises(InvalidRequest, match=f"{run_id} kept no states of layer 2: it has layers 1"):
        ask(bench, name="it", method="activation", run=run_id, positive="joy", layers=2)
    heads, _ = collect(bench, prompts=JOY, site="heads_output", layers=[1])
    with pytest.raises(InvalidRequest, match=f"{heads} kept states at heads_output, and a vector is a direction"):
        ask(bench, name="it", method="activation", run=heads)
    assert bench.vectors.cards() == []
