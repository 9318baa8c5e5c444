"""Batches that do not fit the memory: real failures of the allocator, and estimates that come before them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from nnterp_mcp.cancellation import cancellable
from nnterp_mcp.engine import workload
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Cancelled, OutOfMemory
from nnterp_mcp.model.memory import of_pass
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch, encode_prompts
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

PROMPTS = [" ".join("abcdefgh"[: 1 + number % 8]) for number in range(40)]


@pytest.fixture(scope="module")
def model() -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), name="tiny")


def sizes(model: StandardizedTransformer, run: Callable[[Batch], object] = id) -> list[int]:
    work = Workload(encode_prompts(model.tokenizer, PROMPTS, "tiny"))
    found = [numbers for numbers, _ in work.run_batches(model, lambda batch, numbers: run(batch))]
    assert sorted(number for numbers in found for number in numbers) == list(range(len(PROMPTS)))
    return [len(numbers) for numbers in found]


def test_a_batch_that_fails_is_split_until_it_fits(model: StandardizedTransformer) -> None:
    def run(batch: Batch) -> None:
        if len(batch.prompts) > 5:
            raise torch.OutOfMemoryError

    assert sizes(model) == [40]
    assert sizes(model, run) == [5] * 8


def test_other_errors_are_not_taken_for_a_lack_of_memory(model: StandardizedTransformer) -> None:
    def run(batch: Batch) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        sizes(model, run)


def test_a_prompt_that_does_not_fit_alone_is_named(model: StandardizedTransformer) -> None:
    def run(batch: Batch) -> None:
        raise MemoryError

    with pytest.raises(OutOfMemory, match=r"a prompt of \d+ tokens does not fit the memory of cpu, even alone"):
        sizes(model, run)


def test_what_would_not_fit_is_not_tried(model: StandardizedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    room = of_pass(model, 10, 12, False)
    monkeypatch.setattr(workload, "free", lambda device: room)
    tried: list[int] = []

    def run(batch: Batch) -> None:
        rows, columns = batch.inputs["input_ids"].shape
        tried.append(of_pass(model, rows, columns, False))

    sizes(model, run)
    assert len(tried) > 2
    assert max(tried) <= room
    monkeypatch.setattr(workload, "free", lambda device: 0)
    with pytest.raises(OutOfMemory):
        sizes(model)


def test_results_come_in_the_order_of_the_prompts_however_batches_are_split(model: StandardizedTransformer) -> None:
    done: list[tuple[int, int | None, str]] = []
    prompts = encode_prompts(model.tokenizer, PROMPTS, "tiny")
    work = Workload(prompts, batch_tokens=40, progress=lambda *told: done.append(told)).some([7, 3, 30, 12, 5, 21])

    def run(batch: Batch, numbers: Sequence[int]) -> list[int]:
        assert [prompt.index for prompt in batch.prompts] == [work.prompts[number].index for number in numbers]
        if len(numbers) > 2:
            raise torch.OutOfMemoryError
        return [prompt.index for prompt in batch.prompts]

    assert work.run(model, run, unit="texts") == [7, 3, 30, 12, 5, 21]
    assert [count for count, _, _ in done] == sorted(count for count, _, _ in done)
    assert done[-1] == (6, 6, "texts")


def test_a_cancelled_call_runs_no_further_batch(model: StandardizedTransformer) -> None:
    def stop() -> None:
        if len(ran) == 2:
            raise Cancelled("stop")

    ran: list[int] = []
    work = Workload(encode_prompts(model.tokenizer, PROMPTS, "tiny"), batch_tokens=1)
    with cancellable(stop), pytest.raises(Cancelled):
        work.run(model, lambda batch, numbers: ran.append(len(numbers)) or [None])
    assert ran == [1, 1]


@pytest.mark.slow
def test_the_allocator_s_own_failure_in_a_limited_process() -> None:
    """The states of a batch that the limit forbids, and those of a process without one."""
    script = textwrap.dedent("""
        import resource, sys, psutil, torch
        from nnterp_mcp.engine.workload import Workload
        from nnterp_mcp.experiments.activations import read_states
        from nnterp_mcp.model.text.tokenization import encode_prompts
        from nnterp_mcp.model.standardized import StandardizedTransformer
        from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

        model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), name="tiny")
        prompts = encode_prompts(model.tokenizer, ["a b c d e f g h " * 8] * 1500, "tiny")
        every = [[len(prompt.ids) - 1] for prompt in prompts]
        sizes = []
        work = Workload(prompts, batch_tokens=1 << 20, progress=lambda count, total, unit: sizes.append(count))
        free = read_states(model, work, every, [0, 1])
        batches = len(sizes)
        held = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (held + 40_000_000,) * 2)
        limited = read_states(model, work, every, [0, 1])
        print(batches, len(sizes) > 2, float((free - limited).abs().max()) < 1e-5)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["1", "True", "True"], done.stderr


@pytest.mark.parametrize("patterns", [False, True])
@pytest.mark.slow
def test_the_estimate_is_no_less_than_what_a_pass_takes(tiny: Callable[..., Path], patterns: bool) -> None:
    """The peak of a process over a pass, beside the estimate."""
    script = textwrap.dedent(f"""
        import re, torch
        from pathlib import Path
        from transformers import AutoModelForCausalLM
        from nnterp_mcp.model.memory import of_pass
        from nnterp_mcp.model.standardized import StandardizedTransformer
        from nnterp_mcp.verification.tiny import tiny_tokenizer

        # Not ru_maxrss: a process begins with its parent's.
        peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))
        attention = "eager" if {patterns} else "sdpa"
        plain = AutoModelForCausalLM.from_pretrained({str(tiny("llama"))!r}, attn_implementation=attention)
        model = StandardizedTransformer(plain, tokenizer=tiny_tokenizer(), name="tiny")
        ids = torch.ones(64, 500, dtype=torch.long)
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        with torch.inference_mode():
            plain.model(ids[:2, :50], attention_mask=mask[:2, :50], use_cache=False)
            before = peak()
            plain.model(ids, attention_mask=mask, use_cache=False)
        took = 1024 * (peak() - before)
        print(took, of_pass(model, 64, 500, {patterns}))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    took, estimated = map(int, done.stdout.split())
    assert took > 10_000_000, done.stderr
    assert took < estimated < 20 * took
