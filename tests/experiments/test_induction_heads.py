"""Known kinds of heads and copying, against plain transformers on the same repeated random tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.attention_patterns import choose_heads
from nnterp_mcp.experiments.induction_heads import HeadKinds, RepeatedTokens, repeat_random_tokens, score_heads
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.operations import parse_operation
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

FAMILIES = ("gpt2", "llama", "gemma2", "gpt_oss", "gptj", "qwen3_next")


@pytest.fixture(
    scope="module", params=[*FAMILIES, pytest.param("smollm2-135m", marks=[pytest.mark.smollm2, pytest.mark.slow])]
)
def pair(request: pytest.FixtureRequest) -> tuple[StandardizedTransformer, Any]:
    family = request.param
    if family in FAMILIES:
        plain = tiny_model(family, attn_implementation="eager")
        return StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), name=family), plain
    folder = request.getfixturevalue("smollm2_folder")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model = StandardizedTransformer(str(folder), dtype=torch.float32, device_map="cpu", name=family)
    return model, plain


@pytest.fixture(scope="module")
def repeated(pair: tuple[StandardizedTransformer, Any]) -> RepeatedTokens:
    return repeat_random_tokens(pair[0], count=2, length=20)


@pytest.fixture(scope="module")
def kinds(pair: tuple[StandardizedTransformer, Any], repeated: RepeatedTokens) -> HeadKinds:
    return score_heads(pair[0], Workload(repeated.prompts), choose_heads(pair[0]), repeated.second)


def test_each_sequence_is_random_tokens_twice(
    pair: tuple[StandardizedTransformer, Any], repeated: RepeatedTokens
) -> None:
    model, _ = pair
    begins = model.name != "smollm2-135m"  # its tokenizer writes nothing before a text
    assert repeated.begin == int(begins)
    assert repeated.second == range(repeated.begin + 20, repeated.begin + 40)
    for prompt in repeated.prompts:
        copy = prompt.ids[repeated.begin : repeated.begin + 20]
        assert prompt.ids == [*([model.tokenizer.bos_token_id] if begins else []), *copy, *copy]
        assert len(set(copy)) == 20
        assert not set(copy) & set(model.tokenizer.all_special_ids)
    assert repeated.prompts[0].ids != repeated.prompts[1].ids


def test_equal_seeds_give_equal_sequences(pair: tuple[StandardizedTransformer, Any], repeated: RepeatedTokens) -> None:
    assert repeat_random_tokens(pair[0], count=2, length=20) == repeated
    assert repeat_random_tokens(pair[0], count=2, length=20, seed=1) != repeated


@torch.no_grad()
def test_scores_and_copying(
    pair: tuple[StandardizedTransformer, Any], repeated: RepeatedTokens, kinds: HeadKinds
) -> None:
    model, plain = pair
    layers = [layer for layer, _ in choose_heads(model)]
    best = 0.0
    for row, prompt in enumerate(repeated.prompts):
        output = plain(torch.tensor([prompt.ids]), output_attentions=True)
        found = zip(layers, (item for item in output.attentions if item is not None), strict=True)
        patterns = {layer: item[0].double() for layer, item in found}
        for column, (layer, head) in enumerate(kinds.heads):
            pattern, later = patterns[layer][head], [at for at in repeated.second if at - 20 > 0]
            previous = sum(pattern[at, at - 1] for at in repeated.second) / 20
            duplicate = sum(pattern[at, at - 20] for at in later) / len(later)
            induction = sum(pattern[at, at - 19] for at in repeated.second) / 20
            best = max(best, float(induction))

            assert abs(kinds.previous[row, column] - previous) < 1e-5
            assert abs(kinds.duplicate[row, column] - duplicate) < 1e-5
            assert abs(kinds.induction[row, column] - induction) < 1e-5
        log_probs = output.logits[0].double().log_softmax(-1)
        right = torch.stack([log_probs[at, prompt.ids[at + 1]] for at in repeated.second[:-1]])

        assert abs(kinds.log_probability[row] - right.mean()) < 1e-4
        assert abs(kinds.probability[row] - right.exp().mean()) < 1e-5
    assert best > 0.01


def test_small_batches_score_the_same(
    pair: tuple[StandardizedTransformer, Any], repeated: RepeatedTokens, kinds: HeadKinds
) -> None:
    done: list[int] = []
    small = score_heads(
        pair[0],
        Workload(repeated.prompts, batch_tokens=1, progress=lambda count, total, unit: done.append(count)),
        choose_heads(pair[0]),
        repeated.second,
    )

    assert done == [1, 2]
    assert torch.allclose(small.induction, kinds.induction, atol=1e-5)
    assert torch.allclose(small.log_probability, kinds.log_probability, atol=1e-4)


def test_a_head_that_is_knocked_out_scores_nothing(
    pair: tuple[StandardizedTransformer, Any], repeated: RepeatedTokens, kinds: HeadKinds
) -> None:
    layer, head = kinds.heads[-1]
    knockout = parse_operation({"op": "knockout", "layers": layer, "heads": head})
    made = plan(pair[0], [knockout], repeated.prompts)
    cut = score_heads(pair[0], Workload(repeated.prompts, made), choose_heads(pair[0]), repeated.second)

    assert cut.previous[:, -1].abs().max() == 0
    assert not torch.equal(cut.log_probability, kinds.log_probability)


@pytest.mark.smollm2
def test_the_heads_of_the_default_model(smollm2_folder: Any) -> None:
    model = StandardizedTransformer(str(smollm2_folder), dtype=torch.float32, device_map="cpu", name="smollm2-135m")
    repeated = repeat_random_tokens(model)
    kinds = score_heads(model, Workload(repeated.prompts), choose_heads(model), repeated.second)
    strongest = {
        name: kinds.heads[int(getattr(kinds, name).mean(0).argmax())] for name in ("induction", "previous", "duplicate")
    }
    induction = kinds.induction.mean(0).topk(5).indices.tolist()
    knockouts = [
        parse_operation({"op": "knockout", "layers": kinds.heads[index][0], "heads": kinds.heads[index][1]})
        for index in induction
    ]
    made = plan(model, knockouts, repeated.prompts)
    without = score_heads(model, Workload(repeated.prompts, made), choose_heads(model, 0, 0), repeated.second)

    assert strongest == {"induction": (18, 6), "previous": (16, 0), "duplicate": (14, 3)}
    assert kinds.probability.mean() > 0.3
    assert without.probability.mean() < 0.01


def test_little_room_makes_short_copies() -> None:
    model = SimpleNamespace(tokenizer=tiny_tokenizer(), vocab_size=320, embedded=320, context=11, name="short")
    assert repeat_random_tokens(model, count=1).length == 5  # pyright: ignore[reportArgumentType]
    model.context = 4
    with pytest.raises(Unsupported, match="short has no room for repeated random tokens"):
        repeat_random_tokens(model)  # pyright: ignore[reportArgumentType]
