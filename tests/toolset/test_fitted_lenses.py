"""`logit_lens` with a lens that was fitted: what it reads, says and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnterp_mcp.errors import Forbidden, InvalidRequest
from nnterp_mcp.toolset.logit_lens import SPEC
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests.toolset.test_make_vector import make_bench

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

TEXTS = ["The mill on the second bend of the river was built", "In the year that the bridge was closed the baker"]
OTHER = "Stir the milk into the flour until it is smooth and no lumps are left"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def read(bench: Bench, **arguments: Any) -> Any:
    """Runs the tool as a worker does, the result sent over the wire."""
    from nnterp_mcp.toolset.logit_lens.run import run

    result = run(bench, SPEC.parse({"prompts": OTHER, "positions": "2:", **arguments}), Job(1, lambda progress: None))
    return SPEC.result.model_validate_json(result.model_dump_json())


def divergence(result: Any) -> float:
    return sum(layer.kl for reading in result.readings for layer in reading.layers)


@pytest.mark.parametrize("method", ["jacobian", "tuned"])
def test_a_fitted_lens_reads_another_text_better_than_the_logit_lens(method: str, bench: Bench, tmp_path: Path) -> None:
    from nnterp_mcp import Workload, export_lens, fit_jacobian, fit_tuned, save_lens

    fit = fit_jacobian if method == "jacobian" else fit_tuned
    lens = fit(bench.model, Workload(bench.encode(TEXTS)), [0, 1, 2], skip=2).lens()
    save_lens(lens, tmp_path / "own.safetensors")
    published = tmp_path / ("lens.pt" if method == "jacobian" else "lens")
    export_lens(lens, published)

    found = read(bench, lens=str(tmp_path / "own.safetensors"))

    assert (found.fitted.name, found.fitted.method, found.fitted.prompts) == ("own.safetensors", method, 2)
    plain = read(bench)
    assert divergence(found) < divergence(plain)
    for own, other in zip(found.readings, plain.readings, strict=True):
        assert [layer.plain for layer in own.layers] == [layer.top[0] for layer in other.layers]
        assert own.plain_leads_from == other.leads_from
    again = read(bench, lens=str(published if method == "jacobian" else published / "params.pt"))
    assert divergence(again) == pytest.approx(divergence(found), abs=1e-2)  # published Jacobians are in float16


def test_a_lens_that_cannot_be_read_is_refused(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no lens")
    with pytest.raises(InvalidRequest, match=r"there is no file 'none\.pt'"):
        read(bench, lens="none.pt")
    with pytest.raises(Forbidden, match="does not hold tensors alone"):
        read(bench, lens=str(tmp_path / "text.pt"))
    with pytest.raises(Forbidden):
        read(bench, lens="/etc/lens.pt")
