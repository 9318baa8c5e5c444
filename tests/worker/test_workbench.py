"""A call that ends in the middle of a forward pass: with its own error, and with nothing left behind in the model."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnterp_mcp.errors import Cancelled
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset import specs
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench

PROMPT = "The capital of France is"
ZERO = [{"op": "zero", "site": "mlps_output", "layers": [1]}]
CALLS: dict[str, dict[str, Any]] = {
    "logit_lens": {"prompts": PROMPT, "interventions": ZERO},
    "patchscope": {"source_prompts": PROMPT, "max_new_tokens": 2},
    "attention_probs": {"prompts": PROMPT},
    "generate": {"prompts": PROMPT, "max_new_tokens": 3, "interventions": ZERO},
    "steer": {
        "prompts": PROMPT,
        "vector": {"positive": " a", "negative": " b"},
        "layers": [1],
        "factors": 2,
        "max_new_tokens": 2,
    },
    "run_prompts": {"prompts": [PROMPT], "readout": "logit_lens"},
    "patch_activations": {"clean": PROMPT, "corrupted": "The capital of Spain is", "targets": {"a": " a", "b": " b"}},
    "attribute": {"prompts": PROMPT, "targets": {"a": " a", "b": " b"}},
    "collect_activations": {"prompts": PROMPT},
}


@pytest.fixture(scope="module")
def bench(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    from nnterp_mcp.model.standardized import StandardizedTransformer

    made = Bench("tiny", Settings(runs=tmp_path_factory.mktemp("runs")))
    made.place(StandardizedTransformer(str(tiny("llama"))))
    return made


@pytest.mark.parametrize("tool", CALLS)
def test_a_call_that_ends_between_two_layers_leaves_nothing_behind(tool: str, bench: Bench) -> None:
    run = importlib.import_module(f"nnterp_mcp.toolset.{tool}.run").run
    params = specs()[tool].parse(CALLS[tool])
    asked = 0

    def ask(limit: int | None = None) -> Any:
        nonlocal asked
        asked = 0

        def check() -> None:
            nonlocal asked
            asked += 1
            if limit is not None and asked > limit:
                raise Cancelled("stopped here")

        with bench.stopping(check):
            result = run(bench, params, Job(1, lambda progress: None))
        return result.model_dump(exclude={"seconds"})

    ask()  # what is found out once for a model runs it too
    whole = ask()
    layers = asked
    assert layers >= bench.model.num_layers
    for limit in range(0, layers, max(1, layers // 5)):
        with pytest.raises(Cancelled, match="stopped here"):
            ask(limit)

    assert ask() == whole
    assert asked == layers
    assert not any(layer.block.module._forward_pre_hooks for layer in bench.model.anatomy.layers)
