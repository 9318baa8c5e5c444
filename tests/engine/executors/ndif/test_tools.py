"""Tools on a served model, through nnsight's simulation of NDIF, beside the same tools on the local model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nnterp_mcp.engine.executors.ndif.client import Traffic
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.pool.messages import Recorded
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset import specs
from nnterp_mcp.worker.execution import run_tool
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.recorder import Recorder
from nnterp_mcp.worker.workbench import Bench
from tests.recorded_runs import opened
from tests.toolset.test_make_vector import GRIEF, JOY

CLEAN, CORRUPTED = "The capital of France is", "The capital of Spain is"
TARGETS = {"answer": [" Paris"], "wrong": [" Madrid"]}
NOISE = 2e-4
"""The largest difference of two computations in float32; probabilities, nats and norms alike."""

CALLS: dict[str, dict[str, Any]] = {
    "logit_lens": {"prompts": [CLEAN, CORRUPTED], "targets": TARGETS},
    "run_prompts": {"prompts": [*JOY, *GRIEF], "targets": TARGETS},
    "attention_probs": {"prompts": CLEAN},
    "collect_activations": {"prompts": {"joy": JOY, "grief": GRIEF}, "site": "mlps_output", "pool": "mean"},
    "train_probe": {"prompts": {"joy": JOY, "grief": GRIEF}, "site": "layers_output"},
    "make_vector": {"name": "joy", "method": "mean_difference", "positive": JOY, "negative": GRIEF, "layers": [1, 2]},
    "patchscope": {"source_prompts": CLEAN, "targets": TARGETS},
    "steer": {"prompts": CLEAN, "vector": [0.1] * 64, "layers": "1:3", "factors": [-2, 2], "targets": TARGETS},
    "patch_activations": {"clean": CLEAN, "corrupted": CORRUPTED, "targets": TARGETS},
    "generate": {"prompts": [CLEAN, CORRUPTED], "max_new_tokens": 6},
    "attribute": {"prompts": [CLEAN, CORRUPTED], "targets": TARGETS, "by": "sublayer"},
    "edit_model": {"interventions": [{"op": "zero", "layers": [1], "site": "mlps_output"}]},
}


@pytest.fixture(scope="module")
def benches(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Bench]:
    """The same model, local and served."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nnterp_mcp.engine.executors.ndif.checks import check_served
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from tests.engine.executors.ndif.simulated import serve

    folder = tiny("llama")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    local = StandardizedTransformer(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer=tokenizer)
    served = serve(folder)
    assert all(check.passed for check in check_served(served))
    here, there = (Settings(data=tmp_path_factory.mktemp(name), folders=(folder,)) for name in ("here", "there"))
    return Bench("tiny", here, local), Bench("tiny", there, served)


def call(bench: Bench, tool: str, arguments: dict[str, Any]) -> Any:
    """What a tool's result holds, run as a worker runs it."""
    spec = specs()[tool]
    sent = spec.parse(arguments).model_dump(mode="json")
    store = RunStore(bench.settings.runs)
    job = Job(1, lambda progress: None)
    job.recorder = Recorder(
        store, lambda: bench.environment, Recorded(run=opened(store, tool, params=sent).id, queued=0)
    )
    return run_tool(bench, spec, spec.params.model_validate(sent), job).model_dump(mode="json")


def leaves(value: Any) -> Iterator[Any]:
    """What a result holds, in its order; without what tells the weights."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from () if name in ("fingerprint", "made", "seconds") else leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


@pytest.mark.parametrize("tool", CALLS)
def test_a_tool_says_of_a_served_model_what_it_says_of_the_local_one(benches: tuple[Bench, Bench], tool: str) -> None:
    here, there = ([*leaves(call(bench, tool, CALLS[tool]))] for bench in benches)

    assert len(here) == len(there)
    for one, other in zip(here, there, strict=True):
        if isinstance(one, float) and isinstance(other, float):
            assert one == pytest.approx(other, rel=NOISE, abs=NOISE, nan_ok=True)
        else:
            assert one == other


@pytest.mark.parametrize("site", ["queries", "keys", "values"])
def test_an_edit_that_cannot_be_sent_is_refused_when_it_is_made(benches: tuple[Bench, Bench], site: str) -> None:
    with pytest.raises(Unsupported, match=f"{site} of tiny-llama cannot be edited on NDIF"):
        call(benches[1], "edit_model", {"interventions": [{"op": "zero", "layers": [1], "site": site}]})


def test_the_modules_of_a_served_model_are_those_of_the_local_one(benches: tuple[Bench, Bench]) -> None:
    here, there = (call(bench, "inspect_model", {"path": "model.layers.1", "source": True}) for bench in benches)

    assert there.pop("device") == "ndif at simulated"
    assert list(there.pop("refused")) == ["attention_edit"]
    assert there == {name: value for name, value in here.items() if name not in ("device", "refused")}


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [
        ({"by": "head"}, "the weights by which heads"),
        ({"by": "neuron"}, "the weights by which heads"),
        ({"method": "gradient"}, "gradients"),
        ({"method": "integrated"}, "gradients"),
        ({"method": "patching", "corrupted": CORRUPTED}, "gradients"),
    ],
)
def test_attribution_that_needs_weights_or_gradients_is_refused_by_name(
    benches: tuple[Bench, Bench], arguments: dict[str, Any], subject: str
) -> None:
    with pytest.raises(Unsupported, match=f"which NDIF serves, offers no {subject}"):
        call(benches[1], "attribute", {"prompts": CLEAN, "targets": TARGETS, **arguments})


def test_patching_sends_no_states(benches: tuple[Bench, Bench]) -> None:
    connection = benches[1].model.connection
    call(benches[1], "patch_activations", CALLS["patch_activations"])  # finds what rows may share
    connection.traffic, connection.counts = Traffic(), True

    call(benches[1], "patch_activations", CALLS["patch_activations"])

    connection.counts = False
    assert connection.traffic.requests == 1
    assert connection.traffic.sent < 30_000
    assert connection.traffic.received < 3_000
