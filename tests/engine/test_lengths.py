"""Prompts and generated text across windows, switches and index sizes, against plain transformers alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine.generation import generate
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.logit_lens import read_lens
from nnterp_mcp.experiments.patched_target import SourceTokens, patch_target, resolve_target
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from nnterp_mcp.verification.tiny_configs import WINDOW

NEW = 4


def ids_of(length: int, seed: int) -> list[int]:
    return torch.randint(5, 290, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def encoded(*lengths: int) -> list[EncodedPrompt]:
    return [EncodedPrompt(row, "", ids_of(length, row), []) for row, length in enumerate(lengths)]


def build(model_type: str, rope: str | None = None) -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model(model_type, rope=rope), tokenizer=tiny_tokenizer(), name=model_type)


class Plain:
    """Transformers itself: a model that never read anything else, for each text."""

    def __init__(self, model_type: str, rope: str | None = None) -> None:
        self.model: Any = tiny_model(model_type, rope=rope)

    @torch.no_grad()
    def after(self, ids: list[int]) -> Tensor:
        model: Any = copy.deepcopy(self.model)  # dynamic frequencies keep those of the longest text so far
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)


CHANGING = [("phi3", "longrope"), ("gemma3_text", "longrope"), ("llama", "dynamic"), ("deepseek_v32", None)]


@pytest.mark.parametrize(("model_type", "rope"), CHANGING)
def test_a_prompt_gives_the_same_beside_longer_ones_and_after_them(model_type: str, rope: str | None) -> None:
    model, plain = build(model_type, rope), Plain(model_type, rope)
    prompts = encoded(3, WINDOW, WINDOW + 1, WINDOW + 4, WINDOW + 12)
    last = model.num_layers - 1
    for _ in range(2):
        found = read_lens(model, Workload(prompts), [[len(prompt.ids) - 1] for prompt in prompts], [last], top_k=5)
        for row, prompt in enumerate(prompts):
            alone = plain.after(prompt.ids).exp().topk(5)
            assert found.readout.top_ids[row, 0].tolist() == alone.indices.tolist()
            assert torch.allclose(found.readout.top_probs[row, 0], alone.values, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "rope"),
    [*CHANGING, *((name, None) for name in ("gemma2", "doge", "roberta", "git", "moshi", "whisper"))],
)
def test_generated_text_is_that_of_whole_passes(model_type: str, rope: str | None) -> None:
    model, plain = build(model_type, rope), Plain(model_type, rope)
    prompts = encoded(WINDOW - 2, WINDOW + 3, WINDOW + 3, 4)
    for prompt, said in zip(prompts, generate(model, Workload(prompts), max_new_tokens=NEW), strict=True):
        for at, (token, log_prob) in enumerate(zip(said.ids, said.log_probs, strict=True)):
            alone = plain.after([*prompt.ids, *said.ids[:at]])
            assert log_prob == pytest.approx(float(alone.max()), abs=1e-3)
            assert alone[token] == alone.max()


@pytest.mark.parametrize("model_type", ["phi3", "phimoe"])
def test_generated_text_across_a_switch_is_transformers_own(model_type: str) -> None:
    model, plain = build(model_type, "longrope"), Plain(model_type, "longrope")
    prompts = encoded(WINDOW - 3, WINDOW - 3)
    for prompt, said in zip(prompts, generate(model, Workload(prompts), max_new_tokens=NEW), strict=True):
        ids = torch.tensor([prompt.ids])
        options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
        whole = plain.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert said.ids == whole[0, len(prompt.ids) :].tolist()


def test_a_patched_prompt_goes_on_across_a_switch() -> None:
    model, plain = build("phi3", "longrope"), Plain("phi3", "longrope")
    ids, layer, position = ids_of(WINDOW - 2, 7), 1, 4
    state = torch.randn(1, model.hidden_size, generator=torch.Generator().manual_seed(1))

    def put(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, position] = state[0]
        return changed

    hook = plain.model.model.layers[layer].register_forward_hook(put)
    text = list(ids)
    for _ in range(NEW):
        text.append(int(plain.after(text).argmax()))
    hook.remove()
    (batch,) = patch_target(model, resolve_target(ids, position), state, [layer], max_new_tokens=NEW).run()
    assert batch.continuations[0] == text[len(ids) :]


def test_packed_prompts_are_not_read_with_one_another_s_frequencies() -> None:
    model, plain = build("phi3", "longrope"), Plain("phi3", "longrope")
    last = model.num_layers - 1

    def read(lengths: Sequence[int], target: int) -> Tensor | None:
        """The logits after each source; None where they did not run in one pass with the target prompt."""
        sources = Workload([EncodedPrompt(row, "", ids_of(length, length), []) for row, length in enumerate(lengths)])
        tokens = SourceTokens(sources, [[length - 1] for length in lengths], [last])
        found = tokens.read_for(model, resolve_target(ids_of(target, 0), -1), [(last, last)])
        return None if found.logits is None else model.project_on_vocab(found.states[:, 0])

    assert read([WINDOW + 1, WINDOW + 2], WINDOW + 1) is not None
    assert read([WINDOW + 1, 5], WINDOW + 1) is None
    found = read([4, 6], 5)
    assert found is not None
    for row, length in enumerate((4, 6)):
        assert torch.allclose(found[row].log_softmax(-1), plain.after(ids_of(length, length)), atol=1e-4)
