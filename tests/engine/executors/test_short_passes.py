"""Short passes on static buffers say what the pass itself says; on a CPU without a capture."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch

from nnterp_mcp.engine.batching import attempt
from nnterp_mcp.engine.executors import short_passes
from nnterp_mcp.engine.executors.short_passes import ShortPasses
from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.logit_lens import LensReadings, read_lens
from nnterp_mcp.experiments.text_scores import score_texts
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.request.operations import parse_operation
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

TAKEN = ("llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "mistral", "qwen2_moe", "opt")
OTHERS = ("bloom", "falcon", "mamba", "recurrent_gemma")
"""Families whose masks are not two of transformers' own: their passes run as they are."""

TEXTS = ["The capital of France is", "Paris and Rome", "of Spain is Madrid, and Rome is the capital of"]
TOLERANCE = 2e-5


def _model(family: str) -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), name=family)


@contextmanager
def _as_on_an_accelerator() -> Generator[list[tuple[int, ...]]]:
    """Lets passes share buffers, and lists the shapes of those that do."""
    ran: list[tuple[int, ...]] = []
    usual = ShortPasses.run

    def run(passes: ShortPasses, model: object, key: object, given: dict[str, torch.Tensor], compute: object) -> object:
        ran.append(tuple(given["input_ids"].shape))
        return usual(passes, model, key, given, compute)  # pyright: ignore[reportArgumentType]

    with patch.object(short_passes, "captures", return_value=True), patch.object(ShortPasses, "run", run):
        yield ran


def _prompts(model: StandardizedTransformer, texts: list[str] = TEXTS) -> list[EncodedPrompt]:
    return encode_prompts(model.tokenizer, texts, model.name)


def _lens(model: StandardizedTransformer, texts: list[str] = TEXTS, *, everywhere: bool = False) -> LensReadings:
    prompts = _prompts(model, texts)
    at = [range(len(prompt.ids)) if everywhere else [len(prompt.ids) - 1] for prompt in prompts]
    return read_lens(model, Workload(prompts), at, range(model.num_layers))


def _agree(found: LensReadings, expected: LensReadings) -> bool:
    pairs = [(found.kl, expected.kl), (found.readout.entropy, expected.readout.entropy)]
    return found.prompts == expected.prompts and all(torch.allclose(*pair, atol=TOLERANCE) for pair in pairs)


@pytest.mark.parametrize("family", TAKEN)
@pytest.mark.parametrize("everywhere", [False, True], ids=["last", "all"])
def test_a_lens_on_buffers_is_the_usual_lens(family: str, everywhere: bool) -> None:
    model = _model(family)
    expected = _lens(model, everywhere=everywhere)
    with _as_on_an_accelerator() as ran:
        first, second = (_lens(model, everywhere=everywhere) for _ in range(2))

    assert len(ran) >= 2
    assert _agree(first, expected)
    assert _agree(second, expected)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "llama4_text", "phi3"])
def test_texts_beyond_a_window_are_read_as_usual(family: str) -> None:
    model = _model(family)
    texts = ["0123456789" * 9, "Paris", "9876543210" * 5]
    expected = _lens(model, texts, everywhere=True)
    with _as_on_an_accelerator() as ran:
        assert _agree(_lens(model, texts, everywhere=True), expected)
    assert bool(ran) == (family != "llama4_text")


def test_masks_are_tried_beyond_each_length_that_changes_a_model() -> None:
    model = _model("mistral")
    tried: list[int] = []
    usual = short_passes._try_static_inputs

    def attempted(model: StandardizedTransformer, length: int) -> bool:
        tried.append(length)
        return usual(model, length) and length < 20

    with _as_on_an_accelerator() as ran, patch.object(short_passes, "_try_static_inputs", attempted):
        _lens(model, ["Paris"])
        assert len(ran) == 1
        _lens(model, ["0123456789" * 9])
        _lens(model, ["Paris"])

    assert len(ran) == 2
    assert tried[0] == 8
    assert max(tried) > 32
    assert len(tried) == len(set(tried))


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_run_as_they_are(family: str) -> None:
    model = _model(family)
    expected = _lens(model)
    with _as_on_an_accelerator():
        assert _agree(_lens(model), expected)


def test_scores_of_texts_on_buffers_are_the_usual_scores() -> None:
    model = _model("llama")
    expected = score_texts(model, Workload(_prompts(model)))
    with _as_on_an_accelerator() as ran:
        found = score_texts(model, Workload(_prompts(model)))

    assert ran
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=TOLERANCE)


def test_prompts_of_similar_length_share_buffers_and_keep_their_own_numbers() -> None:
    model = _model("llama")
    texts = ["Paris", "Paris and Rome", "Madrid!"]
    expected = [_lens(model, [text]) for text in texts]
    with _as_on_an_accelerator() as ran:
        found = [_lens(model, [text]) for text in texts]

    assert ran == [(1, 16)] * 3
    assert len(short_passes._PASSES[model.module]._shapes) == 1
    assert all(map(_agree, found, expected))


def test_what_a_pass_returned_is_not_overwritten_by_the_next() -> None:
    model = _model("llama")
    with _as_on_an_accelerator():
        first = _lens(model, ["Paris"])
        kept = first.kl.clone()
        _lens(model, ["Madrid"])

    assert torch.equal(first.kl, kept)


def test_weights_that_are_replaced_and_hooks_that_are_added_count() -> None:
    model = _model("llama")
    layer = model.module.model.layers[1].mlp.down_proj
    with _as_on_an_accelerator():
        before = _lens(model, ["Paris"])
        layer.weight = torch.nn.Parameter(layer.weight.detach() * 2)
        replaced = _lens(model, ["Paris"])
        hook = layer.register_forward_hook(lambda module, args, output: output * 0)
        hooked = _lens(model, ["Paris"])
        hook.remove()
        shapes = len(short_passes._PASSES[model.module]._shapes)
        _lens(model, ["Paris"])
        assert len(short_passes._PASSES[model.module]._shapes) == shapes == 3

    assert _agree(replaced, _lens(model, ["Paris"]))
    assert not _agree(before, replaced)
    assert not _agree(hooked, replaced)


def test_edited_and_long_passes_run_as_they_are() -> None:
    model = _model("llama")
    prompts = _prompts(model)
    edits = plan(model, [parse_operation({"op": "skip", "layers": 1})], prompts)
    ends = [[len(prompt.ids) - 1] for prompt in prompts]
    long = "0123456789" * 205
    with _as_on_an_accelerator() as ran:
        read_lens(model, Workload(prompts, edits), ends, range(model.num_layers))
        with patch.object(short_passes, "_SHORT", 1000):
            _lens(model, [long[:900]])
            assert len(ran) == 1
            _lens(model, [long[:1200]])

    assert len(ran) == 1


def test_only_so_many_shapes_are_kept_and_none_once_memory_ran_out() -> None:
    model = _model("llama")
    with _as_on_an_accelerator(), patch.object(short_passes, "_KEPT", 2):
        for count in (1, 2, 3):
            _lens(model, ["Paris"] * count)
        shapes = short_passes._PASSES[model.module]._shapes
        assert [shape.buffers["input_ids"].shape[0] for shape in shapes.values()] == [2, 3]

    def run_out() -> None:
        raise torch.OutOfMemoryError("too large")

    assert attempt(model, run_out) is None
    assert model.module not in short_passes._PASSES
