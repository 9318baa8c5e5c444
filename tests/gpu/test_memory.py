"""What a card holds: batches that do not fit are halved, two models share it, and all of it comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tests.serving import stdio, text, until


def test_a_batch_that_does_not_fit_is_halved() -> None:
    from nnterp_mcp.engine.workload import Workload
    from nnterp_mcp.model.text.tokenization import Batch, encode_prompts
    from tests.gpu.test_numbers import on_card

    model = on_card("llama")
    prompts = encode_prompts(model.tokenizer, ["The capital of France is"] * 8, "llama")
    sizes: list[int] = []

    def run(batch: Batch, numbers: Sequence[int]) -> int:
        sizes.append(len(batch.prompts))
        held = torch.empty(len(batch.prompts), 9 << 30, dtype=torch.uint8, device="cuda")
        return held.shape[0]

    total = torch.cuda.mem_get_info()[1] >> 30
    done = sum(rows for _, rows in Workload(prompts).run_batches(model, run))

    assert done == 8
    assert (sizes[0] == 8) == (len(sizes) > 1) or total > 8 * 9
    assert torch.cuda.memory_allocated() < 1 << 30


def test_two_models_stand_on_one_card_and_leave_nothing_behind(tiny: Callable[..., Path]) -> None:
    torch.cuda.init()
    before = torch.cuda.mem_get_info()[0]
    with stdio() as caller:
        for family in ("llama", "gpt2"):
            answer = caller.call("load_model", model=str(tiny(family)), device="cuda", dtype="float32")
            assert not answer.is_error, text(answer)
        handles = [f"tiny-{family}" for family in ("llama", "gpt2")]
        for handle in handles:
            said = caller.call("logit_lens", prompts="The capital of France is", model=handle)
            assert not said.is_error, text(said)
        used = before - torch.cuda.mem_get_info()[0]
        for handle in handles:
            caller.call("unload_model", model=handle)
        until(lambda: before - torch.cuda.mem_get_info()[0] < used / 10, within=30)

    assert used > 0


@pytest.mark.parametrize("tool", ["logit_lens", "generate"])
def test_a_worker_whose_card_fails_is_lost_alone(tool: str, tiny: Callable[..., Path]) -> None:
    with stdio() as caller:
        caller.call("load_model", model=str(tiny("llama")), device="cuda", dtype="float32")
        for worker in caller.workers():
            worker.kill()
        lost = caller.call(tool, prompts="The capital of France is")
        again = caller.call("load_model", model=str(tiny("llama")), device="cuda", dtype="float32")

        assert lost.is_error
        assert "load_model" in text(lost)
        assert not again.is_error
