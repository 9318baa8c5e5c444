"""Memory that runs out on the way: real failures of the allocators in a layer, where a batch is too large for it."""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine.generation import find_way, generate
from nnterp_mcp.engine.prefix_sharing import Sharing, known_sharing
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Cancelled, Internal, InvalidRequest, OutOfMemory
from nnterp_mcp.experiments.patched_target import SourceTokens, patch_target, resolve_target
from nnterp_mcp.experiments.patching.activation_patching import Patcher, make_grid
from nnterp_mcp.experiments.patching.corruption import pair_prompts
from nnterp_mcp.experiments.steering import sweep
from nnterp_mcp.experiments.target_prompts import TargetPrompt
from nnterp_mcp.model.loading.load_checks import check_model
from nnterp_mcp.model.memory import is_out_of_memory, says_nothing
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.nnterp.activations import get_token_activations
from nnterp_mcp.nnterp.patchscope import patch_object_attn_lens, patchscope_generate, patchscope_lens
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

TEXTS = ["The capital of France is", "The capital of Spain is"]
TARGET = TargetPrompt("king king\nhello hello\n?", -1)
EVERYTHING = Sharing(prefix=True, layers=True)

FAILURES = {
    "torch": lambda: torch.empty(1 << 50),
    "numpy": lambda: np.empty(1 << 50),
}


@pytest.fixture(autouse=True)
def quick() -> Generator[None]:
    """Memory is given back by a full collection after each failure: it passes over all that was there before."""
    gc.freeze()
    yield
    gc.unfreeze()


def build() -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), name="tiny")


@contextmanager
def limited(model: StandardizedTransformer, tokens: int, fail: Callable[[], object]) -> Generator[list[int]]:
    """While this lasts, a layer of the model cannot compute more tokens at once than so many."""
    failed: list[int] = []

    def refuse(module: Any, args: tuple[Tensor, ...]) -> None:
        if args[0].shape[:2].numel() > tokens:
            failed.append(args[0].shape[:2].numel())
            fail()

    hook = model.module.model.layers[2].mlp.register_forward_pre_hook(refuse)
    try:
        yield failed
    finally:
        hook.remove()


def encoded(model: StandardizedTransformer) -> list[EncodedPrompt]:
    return encode_prompts(model.tokenizer, TEXTS, "tiny")


def steer(model: StandardizedTransformer, *positions: Any) -> Any:
    direction = torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(1))
    found = sweep(
        model,
        Workload(encoded(model)),
        {0: direction, 2: direction},
        (-1.0, 1.0),
        positions=positions,
        max_new_tokens=3,
    )
    return found.readout.top_probs, found.texts


def patch(model: StandardizedTransformer) -> Any:
    (pair,) = pair_prompts(*([prompt] for prompt in encoded(model)))
    return (
        Patcher(model, [pair], make_grid(model, [pair], ["layers_output", "mlps_output"]), metric="kl").patch().values
    )


def write(model: StandardizedTransformer) -> Any:
    return torch.cat([*patchscope_generate(model, TEXTS, TARGET, max_length=2, layers=[1, 2]).values()])


PATHS: dict[str, tuple[str, int, Callable[[StandardizedTransformer], Any]]] = {
    "patchscope_lens": ("numpy", 48, lambda model: patchscope_lens(model, TEXTS, TARGET, layers=[1, 2])),
    "patchscope_generate": ("torch", 52, write),
    "attention patches": ("torch", 12, lambda model: patch_object_attn_lens(model, TEXTS[0], TEXTS[1], 3)),
    "patching": ("numpy", 12, patch),
    "steering at one position": ("torch", 14, lambda model: steer(model, -1)),
    "steering at every position": ("numpy", 14, lambda model: steer(model, "all")),
    "generation": (
        "torch",
        11,
        lambda model: [one.ids for one in generate(model, Workload(encoded(model)), max_new_tokens=4)],
    ),
    "activations": ("numpy", 14, lambda model: get_token_activations(model, TEXTS * 2)),
}
"""What fails, the tokens that a layer can compute at once (a row, or an unpatched and a patched one), and the call."""


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, tuple):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, Tensor):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 2e-5
    else:
        assert one == other


@pytest.mark.parametrize("path", PATHS)
def test_what_does_not_fit_is_halved_until_it_does(path: str) -> None:
    failure, tokens, run = PATHS[path]
    model = build()
    with limited(model, tokens, FAILURES[failure]) as failed:
        found = run(model)

    assert failed
    assert_equal(found, run(build()))


def test_what_was_found_of_a_model_does_not_depend_on_the_memory_of_the_moment() -> None:
    model = build()
    target = resolve_target([3, 14, 15, 9, 26], 4)
    with limited(model, 12, FAILURES["torch"]) as failed:
        assert patch_target(model, target, torch.zeros(1, model.hidden_size), [0]).sharing == EVERYTHING
        patch_all = patch(model)
    assert len(failed) >= 2
    assert set(known_sharing(model.module)) == {EVERYTHING}
    assert_equal(patch(build()), patch_all)

    prompts = Workload([EncodedPrompt(row, "", ids, []) for row, ids in enumerate([[7, 8, 9], [10, 11, 12]])])
    sources = SourceTokens(prompts, [[2], [2]], range(3))
    with limited(model, len(target.ids) + 3, FAILURES["torch"]) as failed:
        assert sources.read_for(model, target, [(0, 0)]).logits is None
    assert failed
    assert sources.read_for(model, target, [(0, 0)]).logits is not None

    with limited(model, 0, FAILURES["numpy"]), pytest.raises(MemoryError):
        find_way(model, 10)
    assert find_way(model, 10) == find_way(build(), 10)


def test_a_row_that_does_not_fit_alone_is_named() -> None:
    model = build()
    with limited(model, 1, FAILURES["torch"]):
        with pytest.raises(OutOfMemory, match=r"a prompt of \d+ tokens with one patched row does not fit"):
            patchscope_lens(model, None, TARGET, layers=[2], latents=torch.zeros(1, 1, model.hidden_size))
        with pytest.raises(OutOfMemory, match=r"a prompt of \d+ tokens does not fit the memory of cpu, even alone"):
            get_token_activations(model, TEXTS[0])


@pytest.mark.parametrize("failure", FAILURES)
def test_a_check_that_runs_out_of_memory_says_nothing_of_the_model(failure: str) -> None:
    model = build()
    with limited(model, 0, FAILURES[failure]), pytest.raises((MemoryError, RuntimeError)) as raised:
        check_model(model)
    assert is_out_of_memory(raised.value)
    assert all(check.passed for check in check_model(model))


def test_one_predicate_knows_every_kind() -> None:
    ran_out = [
        MemoryError(),
        OutOfMemory("it did not fit"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.OutOfMemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
        RuntimeError("FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed"),
    ]
    for fail in FAILURES.values():
        with pytest.raises((MemoryError, RuntimeError)) as raised:
            fail()
        ran_out.append(raised.value)
    others = [
        RuntimeError("shapes do not match"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("can't allocate memory"),
        InvalidRequest("no position of the prompt 'out of memory' is 9."),
        Internal("out of memory"),
    ]
    assert all(map(is_out_of_memory, ran_out))
    assert not any(map(is_out_of_memory, others))
    assert says_nothing(Cancelled("stop"))
