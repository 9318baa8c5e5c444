"""Generated text, token by token, against plain transformers with plain hooks that read the whole text every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine import generation
from nnterp_mcp.engine.generation import Generation, find_way, generate, with_baseline
from nnterp_mcp.engine.sampling import Sampling, sample_tokens
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Cancelled
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from tests.engine.plain import Edits
from tests.engine.test_executors import SUBJECTS, Subject, build

NEW = 6


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(request.param, lambda: request.getfixturevalue("smollm2_folder"))
    torch.set_num_threads(before)


every_family = pytest.mark.parametrize("subject", SUBJECTS, indirect=True)
one_family = pytest.mark.parametrize("subject", ["llama"], indirect=True)


@pytest.fixture(autouse=True)
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models end a text at any moment."""
    monkeypatch.setattr(generation, "end_ids", lambda model: frozenset[int]())


def plainly(subject: Subject, ids: list[int], edits_of: Callable[[int], Edits]) -> tuple[list[int], list[float]]:
    """Greedy tokens and their log-probabilities; the edits may depend on the prompt's length."""
    text, log_probs = list(ids), list[float]()
    for _ in range(NEW):
        logits = subject.plain.logits(text, edits_of(len(ids)))[-1].double()
        text.append(int(logits.argmax()))
        log_probs.append(float(logits.log_softmax(-1).max()))
    return text[len(ids) :], log_probs


def operations(subject: Subject) -> dict[str, tuple[list[dict[str, Any]], Callable[[int], Edits]]]:
    """What is in force, and what it does to the whole text so far, written out."""
    vector = torch.randn(subject.model.hidden_size, generator=torch.Generator().manual_seed(3))
    numbers = vector.tolist()

    def everywhere(states: Tensor) -> None:
        states += 0.5 * vector

    def second(states: Tensor) -> None:
        states[1] += 0.5 * vector

    def from_second(states: Tensor) -> None:
        states[1:] += 0.5 * vector

    def last_and_new(length: int) -> Callable[[Tensor], None]:
        def change(states: Tensor) -> None:
            states[length - 1 :] += 0.5 * vector

        return change

    def at_steps(length: int) -> Callable[[Tensor], None]:
        def change(states: Tensor) -> None:
            for step in (2, 3):
                states[length + step - 1 : length + step] += 0.5 * vector

        return change

    def no_head(states: Tensor) -> None:
        states[:, 1] = 0

    def half_keys(states: Tensor) -> None:
        states[2] *= 0.5

    def cut(length: int) -> Callable[[Tensor], None]:
        def change(pattern: Tensor) -> None:
            pattern[length - 1 :, :, 1:3] = 0
            pattern /= pattern.sum(-1, keepdim=True)

        return change

    def previous(pattern: Tensor) -> None:
        pattern[:, 0] = 0
        for query in range(len(pattern)):
            pattern[query, 0, max(query - 1, 0)] = 1

    seen: list[Tensor] = []

    def skipped(states: Tensor) -> None:
        states[...] = seen[-1]

    add = {"op": "add", "vector": numbers, "factor": 0.5, "layers": 1}
    return {
        "add at all": ([add], lambda length: {("layers_output", 1): everywhere}),
        "add in the prompt": ([add | {"positions": 1}], lambda length: {("layers_output", 1): second}),
        "add from the second on": ([add | {"positions": "1:"}], lambda length: {("layers_output", 1): from_second}),
        "add at the last": ([add | {"positions": "last"}], lambda length: {("layers_output", 1): last_and_new(length)}),
        "add at steps": ([add | {"steps": "2:4"}], lambda length: {("layers_output", 1): at_steps(length)}),
        "zero a head": ([{"op": "zero", "layers": 2, "heads": 1}], lambda length: {("heads_output", 2): no_head}),
        "halve a key": (
            [{"op": "scale", "site": "keys", "layers": 1, "positions": 2, "factor": 0.5}],
            lambda length: {("keys", 1): half_keys},
        ),
        "knock out": (
            [{"op": "knockout", "layers": [1, 2], "query_positions": "last", "key_positions": "1:3"}],
            lambda length: {("attention_probabilities", layer): cut(length) for layer in (1, 2)},
        ),
        "previous token": (
            [{"op": "set_attention", "layers": 1, "heads": 0, "pattern": "previous"}],
            lambda length: {("attention_probabilities", 1): previous},
        ),
        "skip": (
            [{"op": "skip", "layers": 1}],
            lambda length: {
                ("layers_input", 1): lambda states: seen.append(states.clone()),
                ("layers_output", 1): skipped,
            },
        ),
    }


@every_family
def test_every_token_is_the_one_that_plain_hooks_give(subject: Subject) -> None:
    for label, (listed, edits_of) in operations(subject).items():
        found = generate(subject.model, Workload(subject.prompts, subject.plan(*listed)), max_new_tokens=NEW)
        for prompt, one in zip(subject.prompts, found, strict=True):
            ids, log_probs = plainly(subject, prompt.ids, edits_of)
            assert one.ids == ids, (label, prompt.index)
            assert one.log_probs == pytest.approx(log_probs, abs=1e-3), (label, prompt.index)


@every_family
def test_without_operations_it_is_what_transformers_generates(subject: Subject) -> None:
    for prompt, one in zip(subject.prompts, _generate(subject), strict=True):
        ids = torch.tensor([prompt.ids])
        text = subject.model.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert one.ids == text[0, len(prompt.ids) :].tolist()


@pytest.mark.parametrize("family", ["mamba", "jamba", "minimax", "qwen3_next"])
def test_models_with_caches_of_their_own_generate_the_same_text(family: str) -> None:
    subject = build_model(family)
    (prompt,) = encode(subject, ["The capital of France is"])
    (one,) = generate(subject, Workload([prompt]), max_new_tokens=NEW)
    text = list(prompt.ids)
    for _ in range(NEW):
        text.append(int(subject.module(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    assert one.ids == text[len(prompt.ids) :]
    if family in ("jamba", "qwen3_next"):
        assert find_way(subject, len(text)).cached


@one_family
def test_a_seed_gives_a_prompt_the_same_text_wherever_it_stands(subject: Subject) -> None:
    sampling = Sampling(temperature=1.5, top_p=0.9, top_k=50, seed=11)

    def write(prompts: list[EncodedPrompt]) -> list[list[int]]:
        numbered = [replace(prompt, index=index) for index, prompt in enumerate(prompts)]
        return [one.ids for one in generate(subject.model, Workload(numbered), max_new_tokens=NEW, sampling=sampling)]

    together = _generate(subject, sampling=sampling)
    texts = [one.ids for one in together]
    assert [write([prompt])[0] for prompt in subject.prompts] == texts
    assert write(subject.prompts[::-1]) == texts[::-1]
    assert write([subject.prompts[1], *subject.prompts]) == [texts[1], *texts]
    assert len(set(map(tuple, texts))) == len(texts)
    other = _generate(subject, sampling=Sampling(temperature=1.5, seed=12))
    assert [one.ids for one in together] != [one.ids for one in other]


def test_tokens_are_drawn_with_their_probabilities() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    dice = Sampling(seed=5).dice([0])
    rows = logits.repeat(20_000, 1)
    tokens, log_probs = sample_tokens(rows, Sampling(temperature=2.0), [dice] * len(rows))
    seen = torch.bincount(tokens, minlength=4) / len(rows)
    assert torch.allclose(seen, (logits[0] / 2).softmax(-1), atol=0.02)
    assert torch.allclose(log_probs, logits[0].log_softmax(-1)[tokens])
    few, _ = sample_tokens(rows, Sampling(temperature=2.0, top_k=2), [dice] * len(rows))
    assert set(few.tolist()) == {0, 1}
    nucleus, _ = sample_tokens(rows, Sampling(temperature=1.0, top_p=0.7), [dice] * len(rows))
    assert set(nucleus.tolist()) == {0, 1}
    surest, _ = sample_tokens(rows[:100], Sampling(temperature=1.0, top_p=0.01), [dice] * 100)
    assert set(surest.tolist()) == {0}
    whole, _ = sample_tokens(rows, Sampling(temperature=100.0, top_p=1.0, top_k=9), [dice] * len(rows))
    assert set(whole.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("temperature", [0.0, -0.0, 5e-324, 1e-50, 1e-39, 1.2e-38, 1e-37, 1e-9])
@pytest.mark.parametrize("cut", [{}, {"top_p": 0.5}, {"top_k": 3}])
def test_the_smallest_temperatures_take_the_top_token(temperature: float, cut: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 40 * torch.randn(300, 500, generator=generator) + 30
    sampling = Sampling(temperature, **cut)
    tokens, log_probs = sample_tokens(logits, sampling, [sampling.dice([row]) for row in range(300)])

    assert tokens.tolist() == logits.argmax(-1).tolist()
    assert torch.allclose(log_probs.double(), logits.double().log_softmax(-1).amax(-1), atol=1e-5)


@pytest.mark.parametrize("top_p", [5e-324, 1e-40, 1e-9])
def test_the_smallest_nucleus_is_the_top_token(top_p: float) -> None:
    logits = torch.randn(300, 500, generator=torch.Generator().manual_seed(0))
    dice = [Sampling().dice([row]) for row in range(300)]
    tokens, _ = sample_tokens(logits, Sampling(temperature=1.0, top_p=top_p), dice)
    assert tokens.tolist() == logits.argmax(-1).tolist()


@one_family
def test_a_text_ends_where_the_model_ends_it(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _generate(subject)
    end = whole[0].ids[2]
    monkeypatch.setattr(generation, "end_ids", lambda model: frozenset({end}))
    for one, ended in zip(whole, _generate(subject), strict=True):
        cut = one.ids.index(end) + 1 if end in one.ids else NEW
        assert ended.ids == one.ids[:cut]
        assert ended.ended == (end in one.ids)


@pytest.mark.parametrize("subject", ["llama", "gemma2", "gpt2"], indirect=True)
@pytest.mark.parametrize("budget", [8, 4096])
def test_rows_that_are_read_in_parts_and_leave_early_are_those_of_each_prompt_alone(
    subject: Subject, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Workload(subject.prompts, subject.plan({"op": "scale", "layers": 1, "factor": 2, "site": "mlps_output"}))
    end = generate(subject.model, work.some([0]), max_new_tokens=NEW)[0].ids[1]
    monkeypatch.setattr(generation, "end_ids", lambda model: frozenset({end}))
    alone = [generate(subject.model, work.some([row]), max_new_tokens=NEW)[0] for row in range(len(work.prompts))]
    both = generate(subject.model, with_baseline(replace(work, batch_tokens=budget, batch_size=64)), max_new_tokens=NEW)
    plain = _generate(subject)
    assert len({len(one.ids) for one in alone}) > 1
    for found, expected in zip(both, [*plain, *alone], strict=True):
        assert (found.ids, found.ended) == (expected.ids, expected.ended)
        assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-4)


@one_family
def test_a_long_generation_takes_as_many_rows_as_a_short_one(subject: Subject) -> None:
    prompts = [replace(subject.prompts[0], index=row) for row in range(32)]
    assert len(Workload(prompts, batch_tokens=1024, new_tokens=1000).split(subject.model)) == 1
    whole = Workload(prompts, batch_tokens=64, new_tokens=1000, in_parts=False, batch_size=32)
    assert max(map(len, whole.split(subject.model))) * len(prompts[0].ids) <= 64


@one_family
def test_a_cancelled_generation_stops_between_tokens_and_leaves_nothing_behind(subject: Subject) -> None:
    model = subject.model
    whole, before = _generate(subject), model.attention
    edits = subject.plan({"op": "knockout", "layers": 1, "key_positions": 0})
    steps: list[int] = []

    def stop(done: int, total: int | None, unit: str) -> None:
        steps.append(done)
        if done == 3:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        generate(model, Workload(subject.prompts, edits, progress=stop), max_new_tokens=NEW)
    assert steps == [1, 2, 3]
    assert model.attention == before
    assert _generate(subject) == whole


def _generate(subject: Subject, sampling: Sampling = Sampling()) -> list[Generation]:  # noqa: B008
    return generate(subject.model, Workload(subject.prompts), max_new_tokens=NEW, sampling=sampling)


def build_model(family: str) -> StandardizedTransformer:
    from nnterp_mcp.model.loading.load_checks import check_model
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    model = StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), name=family)
    check_model(model)
    return model


def encode(model: StandardizedTransformer, texts: list[str]) -> Any:
    from nnterp_mcp.model.text.tokenization import encode_prompts

    return encode_prompts(model.tokenizer, texts, model.name)
