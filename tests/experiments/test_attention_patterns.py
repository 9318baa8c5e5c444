"""What heads read, against plain transformers' own attention weights, reduced in plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, NnterpError, Unsupported
from nnterp_mcp.experiments.attention_patterns import (
    ATTENTION_TARGETS,
    AttentionNumbers,
    AttentionReadings,
    HeadChoice,
    choose_heads,
    read_attention,
)
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.request.operations import parse_operation
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

PROMPTS = [
    "one two one two",
    "a capital of France is a capital of Spain, and a window of tokens ends here",  # longer than a window
    "Spain is",
]
KINDS = {
    "gpt2": "positions added to embeddings",
    "llama": "grouped queries",
    "gemma2": "sliding windows, softcapped scores",
    "mistral": "sliding windows",
    "gpt_oss": "sinks",
    "qwen3_next": "linear attention in every other layer",
    "gptj": "layers return tuples",
    "falcon": "layers return tuples, eager and sdpa in one module",
    "gpt_neox": "queries, keys and values in one matrix",
}
LACKING = {"qwen3_next": [0, 2]}


@dataclass
class Subject:
    """A model twice: standardized, and plain with its attention weights of each prompt alone."""

    model: StandardizedTransformer
    prompts: list[EncodedPrompt]
    patterns: list[dict[int, Tensor]]
    """For each prompt and layer, (head, query, key) in double precision."""

    @property
    def chosen(self) -> list[HeadChoice]:
        return choose_heads(self.model)

    def pattern(self, prompt: int, head: tuple[int, int]) -> Tensor:
        return self.patterns[prompt][head[0]][head[1]]


@torch.no_grad()
def weights(plain: Any, ids: Sequence[int], layers: Sequence[int]) -> dict[int, Tensor]:
    found = [item for item in plain(torch.tensor([ids]), output_attentions=True).attentions if item is not None]
    return {layer: item[0].double() for layer, item in zip(layers, found, strict=True)}


@pytest.fixture(scope="module", params=[*KINDS, pytest.param("smollm2-135m", marks=pytest.mark.smollm2)])
def subject(request: pytest.FixtureRequest) -> Subject:
    family = request.param
    if family in KINDS:
        plain, ours, tokenizer = tiny_model(family, attn_implementation="eager"), tiny_model(family), tiny_tokenizer()
    else:
        folder = request.getfixturevalue("smollm2_folder")
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    model = StandardizedTransformer(ours, tokenizer=tokenizer, name=family)
    prompts = encode_prompts(tokenizer, PROMPTS, family)
    layers = [layer for layer in range(model.num_layers) if layer not in LACKING.get(family, ())]
    return Subject(model, prompts, [weights(plain, prompt.ids, layers) for prompt in prompts])


@pytest.fixture(scope="module")
def readings(subject: Subject) -> AttentionReadings:
    return read_attention(subject.model, Workload(subject.prompts), subject.chosen, top_k=3)


def is_target(target: str, ids: Sequence[int], query: int, key: int) -> bool:
    return {
        "first": key == 0,
        "previous": key > 0 and key == query - 1,
        "itself": key > 0 and key == query,
        "duplicate": 0 < key < query and ids[key] == ids[query],
        "induction": 0 < key < query and ids[key - 1] == ids[query],
    }[target]


def mean_mass(target: str, pattern: list[list[float]], ids: Sequence[int], queries: Sequence[int]) -> float:
    sums: list[float] = []
    for query in queries:
        keys = [key for key in range(len(ids)) if is_target(target, ids, query, key)]
        if keys:
            sums.append(sum(pattern[query][key] for key in keys))
    return sum(sums) / len(sums) if sums else math.nan


def entropy(row: Sequence[float]) -> float:
    every = [*row, max(0.0, 1 - sum(row))]
    return -sum(p * math.log(p) for p in every if p > 0)


def close(one: float, other: float, within: float = 1e-5) -> bool:
    return (math.isnan(one) and math.isnan(other)) or abs(one - other) < within


def test_every_head_that_has_attention_is_read(subject: Subject, readings: AttentionReadings) -> None:
    lacking = LACKING.get(subject.model.name, [])
    count = 9 if subject.model.name == "smollm2-135m" else 4
    layers = [layer for layer in range(subject.model.num_layers) if layer not in lacking]

    assert readings.heads == [(layer, head) for layer in layers for head in range(count)]
    assert readings.mass.shape == (len(PROMPTS), len(readings.heads), len(ATTENTION_TARGETS))


def test_masses_and_entropy(subject: Subject, readings: AttentionReadings) -> None:
    apart = 0.0
    for row, prompt in enumerate(subject.prompts):
        queries = range(1, len(prompt.ids))
        for column, head in enumerate(readings.heads):
            pattern = subject.pattern(row, head).tolist()
            for target in ATTENTION_TARGETS:
                expected = mean_mass(target, pattern, prompt.ids, queries)
                assert close(float(readings.of(target)[row, column]), expected)
            spread = sum(entropy(pattern[query]) for query in queries) / len(queries)
            sink = sum(1 - sum(pattern[query]) for query in queries) / len(queries)
            assert close(float(readings.entropy[row, column]), spread, 1e-4)
            assert close(float(readings.sink[row, column]), sink)
            apart = max(apart, spread)
    assert apart > 0.5
    assert (float(readings.sink.max()) > 0.01) == (subject.model.name == "gpt_oss")


def test_tokens_that_come_again_are_what_the_kinds_are_scored_on(readings: AttentionReadings) -> None:
    assert not readings.of("duplicate")[0].isnan().any()
    assert not readings.of("induction")[0].isnan().any()
    assert readings.of("first").min() > 0
    assert readings.of("previous")[1].max() > 0.02


def test_strongest_pairs(subject: Subject, readings: AttentionReadings) -> None:
    for row, prompt in enumerate(subject.prompts):
        length = len(prompt.ids)
        for column, head in enumerate(readings.heads):
            pattern = subject.pattern(row, head)
            expected = sorted((float(pattern[q, k]) for q in range(1, length) for k in range(1, length)), reverse=True)
            expected = [*expected, 0.0, 0.0, 0.0][:3]
            found = readings.pair_probs[row, column].tolist()
            places = zip(readings.pair_queries[row, column], readings.pair_keys[row, column], found, strict=True)

            assert all(close(p, e) for p, e in zip(found, expected, strict=True))
            assert all(close(float(pattern[q, k]), p) for q, k, p in places if p > 0)


def test_what_chosen_queries_read(subject: Subject) -> None:
    queries = [[len(prompt.ids) - 1, 1] for prompt in subject.prompts]
    read = read_attention(subject.model, Workload(subject.prompts), subject.chosen, queries, top_k=4)
    expected = [(row, at) for row, prompt in enumerate(subject.prompts) for at in sorted({1, len(prompt.ids) - 1})]

    assert sorted(set(read.reads)) == expected
    for place, (row, at) in enumerate(read.reads):
        for column, head in enumerate(read.heads):
            pattern = subject.pattern(row, head)[at]
            best = [*sorted(pattern[1:].tolist(), reverse=True), 0.0, 0.0, 0.0][:4]
            found = read.read_probs[place, column].tolist()

            assert close(float(read.read_first[place, column]), float(pattern[0]))
            assert all(close(p, b) for p, b in zip(found, best, strict=True))
            assert all(
                close(float(pattern[key]), p)
                for key, p in zip(read.read_keys[place, column], found, strict=True)
                if p > 0
            )


def test_means_are_over_the_chosen_queries(subject: Subject) -> None:
    prompt = subject.prompts[1]
    read = read_attention(subject.model, Workload([prompt]), subject.chosen, [[3, 5]])
    for column, head in enumerate(read.heads):
        pattern = subject.pattern(1, head).tolist()
        assert close(float(read.of("itself")[0, column]), (pattern[3][3] + pattern[5][5]) / 2)
        assert close(float(read.entropy[0, column]), (entropy(pattern[3]) + entropy(pattern[5])) / 2, 1e-4)


def test_a_batch_reads_the_same_as_each_prompt_alone(subject: Subject, readings: AttentionReadings) -> None:
    done: list[int] = []
    alone = read_attention(
        subject.model,
        Workload(subject.prompts, batch_tokens=1, progress=lambda count, total, unit: done.append(count)),
        subject.chosen,
        top_k=3,
    )

    assert done == [1, 2, 3]
    for name in ("entropy", "mass", "sink", "pair_probs"):
        assert torch.allclose(getattr(alone, name), getattr(readings, name), atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("at_once", [1, 40])
def test_patterns_are_reduced_in_parts(subject: Subject, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [[len(prompt.ids) - 1, 1] for prompt in subject.prompts]
    together = [read_attention(subject.model, Workload(subject.prompts), subject.chosen, at) for at in (None, queries)]
    monkeypatch.setattr("nnterp_mcp.experiments.attention_patterns._TOGETHER", 0)
    monkeypatch.setattr("nnterp_mcp.experiments.attention_patterns._AT_ONCE", at_once)
    parts = [read_attention(subject.model, Workload(subject.prompts), subject.chosen, at) for at in (None, queries)]

    for whole, part in zip(together, parts, strict=True):
        assert part.reads == whole.reads
        for field in fields(AttentionNumbers):
            torch.testing.assert_close(getattr(part, field.name), getattr(whole, field.name), equal_nan=True)


def test_some_layers_and_heads(subject: Subject, readings: AttentionReadings) -> None:
    chosen = choose_heads(subject.model, "1:", [-1, 0])
    some = read_attention(subject.model, Workload(subject.prompts), chosen)

    assert {head for _, head in some.heads} == {0, subject.model.num_heads - 1}
    columns = [readings.heads.index(head) for head in some.heads]
    assert torch.allclose(some.mass, readings.mass[:, columns], atol=1e-6, equal_nan=True)


def test_operations_act_before_the_reading(subject: Subject, readings: AttentionReadings) -> None:
    layer, head = readings.heads[0]
    knockout = parse_operation({"op": "knockout", "layers": layer, "heads": head, "key_positions": 0})
    made = plan(subject.model, [knockout], subject.prompts)
    cut = read_attention(subject.model, Workload(subject.prompts, made), subject.chosen)

    assert cut.of("first")[:, 0].abs().max() < 1e-6
    assert torch.allclose(cut.of("first")[:, 1], readings.of("first")[:, 1], atol=1e-6)
    for row, prompt in enumerate(subject.prompts):
        pattern = subject.pattern(row, (layer, head))
        shares = [pattern[q, q] / (1 - pattern[q, 0]) for q in range(1, len(prompt.ids))]
        assert close(float(cut.of("itself")[row, 0]), float(sum(shares) / len(shares)), 1e-4)


@pytest.fixture(scope="module")
def hybrid() -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model("qwen3_next"), tokenizer=tiny_tokenizer(), name="hybrid")


@pytest.mark.parametrize("layer", [1, 3])
def test_eager_attention_is_undone_also_after_errors(hybrid: StandardizedTransformer, layer: int) -> None:
    class Enough(Exception):
        pass

    def fail(done: int, total: int | None, unit: str) -> None:
        raise Enough

    hybrid.set_attention("sdpa")
    prompts = encode_prompts(hybrid.tokenizer, PROMPTS, hybrid.name)
    read_attention(hybrid, Workload(prompts), choose_heads(hybrid, layer))
    assert hybrid.attention == "sdpa"
    with pytest.raises(Enough):
        read_attention(hybrid, Workload(prompts, progress=fail), choose_heads(hybrid, layer))
    assert hybrid.attention == "sdpa"
    with pytest.raises(IndexError):
        read_attention(hybrid, Workload(prompts), [HeadChoice(layer, [99])])
    assert hybrid.attention == "sdpa"


@pytest.mark.parametrize(
    ("layers", "heads", "error", "message"),
    [
        (4, "all", InvalidRequest, "layer 4 does not exist: hybrid has layers 0 to 3."),
        (1, 4, InvalidRequest, "head 4 does not exist: layer 1 of hybrid has heads 0 to 3."),
        ("all", "4:", InvalidRequest, "the range '4:' holds no head: layer 1 of hybrid has heads 0 to 3."),
        (
            (0, 2),
            "all",
            Unsupported,
            "layer 0 of hybrid has no attention (it is a linear_attention layer): the layers that have one are 1, 3.",
        ),
    ],
)
def test_heads_that_do_not_exist(
    hybrid: StandardizedTransformer, layers: Any, heads: Any, error: type[NnterpError], message: str
) -> None:
    with pytest.raises(error) as raised:
        choose_heads(hybrid, layers, heads)
    assert raised.value.message == message


def test_a_model_without_attention() -> None:
    model = StandardizedTransformer(tiny_model("mamba"), tokenizer=tiny_tokenizer(), name="mamba")
    with pytest.raises(Unsupported, match="mamba: no layer forms attention probabilities"):
        choose_heads(model)


def test_layers_without_attention_are_left_out(hybrid: StandardizedTransformer) -> None:
    assert [layer for layer, _ in choose_heads(hybrid, "all", 0)] == [1, 3]


def test_one_token_has_nothing_to_attend_to(hybrid: StandardizedTransformer) -> None:
    prompt = EncodedPrompt(0, "", [5], [])
    read = read_attention(hybrid, Workload([prompt]), choose_heads(hybrid))

    assert read.entropy.isnan().all()
    assert read.mass.isnan().all()
    assert read.pair_probs.abs().max() == 0


def test_whole_patterns_are_handed_out_without_padding(subject: Subject, readings: AttentionReadings) -> None:
    found: dict[int, Tensor] = {}
    read_attention(subject.model, Workload(subject.prompts), subject.chosen, on_pattern=found.__setitem__)

    for prompt in subject.prompts:
        expected = torch.stack([subject.pattern(prompt.index, head) for head in readings.heads])
        torch.testing.assert_close(found[prompt.index].double(), expected, atol=1e-5, rtol=0)
