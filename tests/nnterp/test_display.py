"""The library's figure of targets over the layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def test_curves_are_the_means_over_prompts(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from nnterp_mcp import Prompt, StandardizedTransformer, logit_lens, run_prompts
    from nnterp_mcp.nnterp.display import plot_target_evolution

    model = StandardizedTransformer(str(tiny("llama")))
    texts = ["The capital of France is", "one two"]
    prompts = [Prompt.from_strings(text, {"right": "Paris", "wrong": "two"}, model.tokenizer) for text in texts]
    results = run_prompts(model, prompts, get_probs_func=logit_lens, tqdm=None)

    figure = plot_target_evolution(results, title="targets", file=tmp_path / "targets")
    curves = {trace.name: trace for trace in figure.data if trace.fill is None}
    bands = [trace for trace in figure.data if trace.fill is not None]

    assert set(curves) == {"right", "wrong"}
    for name, trace in curves.items():
        assert list(trace.y) == pytest.approx(results[name].mean(0).tolist())
        assert list(trace.x) == list(range(model.num_layers))
    spread = results["right"].std(0, correction=0)
    assert list(bands[0].y[: model.num_layers]) == pytest.approx((results["right"].mean(0) + spread).tolist())
    assert "targets" in (tmp_path / "targets.html").read_text()

    alone = plot_target_evolution({"right": results["right"][0]})
    assert list(alone.data[0].y) == pytest.approx(results["right"][0].tolist())
    assert len(alone.data) == 1
