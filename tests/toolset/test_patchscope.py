"""The tool `patchscope`: what it says, how much, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.errors import Cancelled, InvalidRequest, LimitExceeded
from nnterp_mcp.formatting import rounded
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset.patchscope import SPEC
from nnterp_mcp.toolset.patchscope.result import Distribution, PatchReading, PatchscopeResult, SourceReading
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests import serving

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

QUESTION = "The capital of France is"
TARGETS = {"capital": "Paris", "traps": ["London", "Madrid"]}
DESCRIBE = "Syria: a country in the Middle East\nLeonardo DiCaprio: an American actor\nx"


@pytest.fixture(scope="module")
def bench(smollm2_folder: Path) -> Bench:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nnterp_mcp.model.standardized import StandardizedTransformer

    weights: Any = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    name = "smollm2-135m"
    return Bench(name, Settings(), StandardizedTransformer(weights, tokenizer=tokenizer, name=name))


@pytest.fixture(scope="module")
def tiny_bench() -> Bench:
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), name="tiny")
    return Bench("tiny", Settings(max_prompts=3), model)


def job() -> Job:
    return Job(1, lambda progress: None)


def ask(bench: Bench, **arguments: Any) -> PatchscopeResult:
    from nnterp_mcp.toolset.patchscope.run import run

    return run(bench, SPEC.parse(arguments), job())


@pytest.mark.smollm2
@pytest.mark.parametrize(
    "arguments",
    [
        {"source_prompts": QUESTION},
        {"source_prompts": QUESTION, "targets": TARGETS},
        {"source_prompts": QUESTION, "targets": TARGETS, "target_layers": "all", "source_layers": "::5"},
        {
            "source_prompts": QUESTION,
            "source_layers": [20, 25],
            "target_layers": [3, 4],
            "target_prompt": "repeat_chat",
        },
        {"source_prompts": [QUESTION, "London is foggy"], "source_layers": "::4"},
        {
            "source_prompts": "The Eiffel tower",
            "source_layers": [2, 4],
            "target_prompt": DESCRIBE,
            "target_position": {"text": "x"},
            "max_new_tokens": 5,
        },
        {
            "source_prompts": QUESTION,
            "source_layers": [10, 29],
            "interventions": [{"op": "zero", "site": "mlps_output", "layers": 20}],
        },
    ],
    ids=["plain", "targets", "grid", "pairs", "sources", "text", "interventions"],
)
def test_says(bench: Bench, snapshot: SnapshotAssertion, arguments: dict[str, Any]):
    answer = SPEC.digest(ask(bench, **arguments))

    assert answer.text() == snapshot
    facts = json.dumps(rounded(answer.structured()), ensure_ascii=False)
    tokenizer = bench.model.tokenizer
    assert len(tokenizer(answer.text())["input_ids"]) <= 1000
    assert len(tokenizer(facts)["input_ids"]) <= 1000


def test_both_channels_say_the_same(tiny_bench: Bench):
    answer = SPEC.digest(ask(tiny_bench, source_prompts="Spain is", targets=TARGETS))

    said = answer.text()
    for row in answer.table.rows:
        assert str(row[0]) in said
    assert answer.finding in said
    assert all(note in said for note in answer.notes)


def made_result(layers: int, sources: int = 1, text: str | None = None, layout: Any = "same") -> PatchscopeResult:
    """A result with wide cells, for measuring answers without a model."""
    said: dict[str, Any] = {
        "top": [(" Constantinople", 0.123456), (" Liechtenstein", 0.0123456), ("\n\n", 1.2345e-5)],
        "entropy": 5.4321,
        "tracked": [(0.0123456, 1234), (1.23e-5, 23456)],
        "text": text,
        "says": [False, False],
    }
    targets = range(layers) if layout == "grid" else [0]
    patches = [
        PatchReading(source_layer=layer, target_layer=target if layout == "grid" else layer, **said)
        for layer in range(layers)
        for target in targets
    ]
    source = SourceReading(
        prompt=0, position=123, token=" Constantinople", answer=" is", unpatched=Distribution(**said), patches=patches
    )
    return PatchscopeResult(
        model="some-model",
        before="king king\n" * 400,
        target_token="?",
        after="hello hello\n" * 400,
        layout=layout,
        categories={"capital": [" Paris"], "traps": [" London"]},
        shared={},
        interventions=[],
        sources=[source] * sources,
    )


@pytest.fixture(scope="module")
def keeping(tiny_bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bench that keeps a vector with a direction for two layers, and one for any layer."""
    from nnterp_mcp.toolset.make_vector import SPEC as MAKE_VECTOR
    from nnterp_mcp.toolset.make_vector.run import run

    bench = Bench("tiny", Settings(data=tmp_path_factory.mktemp("data")), tiny_bench.model)
    activation = {"name": "spain", "method": "activation", "positive": "Spain is", "layers": [1, 3]}
    for arguments in (activation, {"name": "noise", "method": "random", "norm": 2.5}):
        run(bench, MAKE_VECTOR.parse(arguments), job())
    return bench


def test_vectors_are_put_in_as_plain_hooks_put_them(keeping: Bench):
    import torch

    vectors = {name: keeping.vectors.load(name, keeping.identity, "tiny").directions for name in ("spain", "noise")}
    expected_norms = {"spain": [2 * float((row**2).sum() ** 0.5) for row in vectors["spain"]], "noise": [5.0, 5.0]}
    result = ask(
        keeping,
        source_vectors=["spain", "noise"],
        factor=2,
        target_prompt="Madrid is in x and",
        target_position={"text": "x"},
        targets={"a": "Madrid"},
        top_k=20,
    )

    model: Any = keeping.model.module
    tokenizer = keeping.model.tokenizer
    encoding = tokenizer("Madrid is in x and", return_offsets_mapping=True)
    (at,) = [i for i, (start, end) in enumerate(encoding["offset_mapping"]) if start < 14 and end > 13]
    ids = torch.tensor([encoding["input_ids"]])
    assert [source.vector for source in result.sources] == ["spain", "noise"]
    for source in result.sources:
        rows = vectors[source.vector or ""]
        assert [(patch.source_layer, patch.target_layer) for patch in source.patches] == [(1, 1), (3, 3)]
        for place, patch in enumerate(source.patches):
            state = 2 * torch.from_numpy(rows[min(place, len(rows) - 1)])
            replaced: list[float] = []

            def put(module: Any, inputs: Any, output: Any, state: Any = state, replaced: Any = replaced) -> Any:
                hidden = (output[0] if isinstance(output, tuple) else output).clone()
                replaced.append(float(hidden[0, at].norm()))
                hidden[0, at] = state
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            handle = model.model.layers[patch.source_layer].register_forward_hook(put)
            with torch.no_grad():
                probs = model(input_ids=ids, use_cache=False).logits[0, -1].float().softmax(-1)
            handle.remove()
            assert [p for _, p in patch.top] == pytest.approx(probs.topk(20).values.tolist(), abs=1e-5)
            assert patch.lengths == pytest.approx((expected_norms[source.vector or ""][place], replaced[0]), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "pairs"),
    [
        ({"source_vectors": "spain"}, [(1, 1), (3, 3)]),
        ({"source_vectors": "noise"}, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ({"source_vectors": ["noise", "spain"]}, [(1, 1), (3, 3)]),
        ({"source_vectors": "spain", "target_layers": 3}, [(3, 3)]),
        ({"source_vectors": "noise", "target_layers": "1:3"}, [(1, 1), (2, 2)]),
        ({"source_vectors": "spain", "source_layers": [3], "target_layers": 0}, [(3, 0)]),
        ({"source_vectors": "spain", "source_layers": [1, 3], "target_layers": [0, 2]}, [(1, 0), (3, 2)]),
    ],
)
def test_each_layer_gets_its_own_direction(keeping: Bench, arguments: dict[str, Any], pairs: list[tuple[int, int]]):
    result = ask(keeping, **arguments)

    for source in result.sources:
        assert [(patch.source_layer, patch.target_layer) for patch in source.patches] == pairs


def test_says_what_vectors_do(keeping: Bench, snapshot: SnapshotAssertion):
    one = ask(keeping, source_vectors="spain", factor=3)
    several = ask(keeping, source_vectors=["spain", "noise"], targets={"capital": "Paris"}, max_new_tokens=2)

    assert [SPEC.digest(result).text() for result in (one, several)] == snapshot


@pytest.mark.smollm2
def test_a_kept_state_says_what_the_state_itself_says(bench: Bench, tmp_path: Path):
    from nnterp_mcp.toolset.make_vector import SPEC as MAKE_VECTOR
    from nnterp_mcp.toolset.make_vector.run import run

    keeping = Bench("smollm2-135m", Settings(data=tmp_path), bench.model)
    kept = {"name": "france", "method": "activation", "positive": QUESTION, "layers": [20, 25]}
    run(keeping, MAKE_VECTOR.parse(kept), job())
    (itself,) = ask(keeping, source_prompts=QUESTION, source_layers=[20, 25], targets=TARGETS).sources
    result = ask(keeping, source_vectors="france", targets=TARGETS)

    for patch, same in zip(result.sources[0].patches, itself.patches, strict=True):
        assert [p for _, p in patch.top] == pytest.approx([p for _, p in same.top], abs=1e-5)
        assert [p for p, _ in patch.tracked] == pytest.approx([p for p, _ in same.tracked], abs=1e-5)
        assert [rank for _, rank in patch.tracked] == [rank for _, rank in same.tracked]
    assert 'the vector "france" reads as capital at layer 25' in SPEC.digest(result).finding


@pytest.mark.smollm2
@pytest.mark.parametrize("sources", [1, 2, 500])
@pytest.mark.parametrize("categories", [{}, {"capital": [" Paris"], "traps": [" London"]}])
@pytest.mark.parametrize("text", [None, "It is the capital of a country in the Middle East. " * 10])
def test_answers_of_vectors_are_small(bench: Bench, sources: int, categories: dict[str, list[str]], text: str | None):
    result = made_result(32, 1, text)
    said: dict[str, Any] = {} if categories else {"tracked": [], "says": []}
    patches = [
        patch.model_copy(
            update={"lengths": (12.3456, 678.9)} | said | {"top": [(f" {i}", 0.5)] * 3 if i % 2 else patch.top}
        )
        for i, patch in enumerate(result.sources[0].patches)
    ]
    unpatched = result.sources[0].unpatched.model_copy(update=said)
    source = SourceReading(
        prompt=None, position=None, token=None, answer=None, vector="v" * 64, unpatched=unpatched, patches=patches
    )
    answer = SPEC.digest(result.model_copy(update={"categories": categories, "sources": [source] * sources}))

    tokenizer = bench.model.tokenizer
    assert len(tokenizer(answer.text())["input_ids"]) <= 1000
    assert len(tokenizer(json.dumps(rounded(answer.structured()), ensure_ascii=False))["input_ids"]) <= 1000


@pytest.mark.smollm2
@pytest.mark.parametrize("sources", [1, 2, 500])
@pytest.mark.parametrize("layout", ["same", "grid"])
@pytest.mark.parametrize("text", [None, "It is the capital of a country in the Middle East. " * 10])
def test_answers_are_small(bench: Bench, sources: int, layout: str, text: str | None):
    answer = SPEC.digest(made_result(32, sources, text, layout))

    tokenizer = bench.model.tokenizer
    assert len(tokenizer(answer.text())["input_ids"]) <= 1000
    assert len(tokenizer(json.dumps(rounded(answer.structured()), ensure_ascii=False))["input_ids"]) <= 1000
    assert answer.truncated == (sources != 2)


def test_a_text_that_names_a_target_counts(tiny_bench: Bench):
    from nnterp_mcp.toolset.patchscope.run import _is_word, _names  # pyright: ignore[reportPrivateUsage]

    assert _names("a city: PARIS.", [" Paris"])
    assert not _names("Parisian", ["Paris"])
    assert not _is_word([","])


def test_sources_by_text_and_targets_by_position(tiny_bench: Bench):
    result = ask(
        tiny_bench,
        source_prompts="Spain is",
        source_positions={"text": "Spain"},
        target_prompt="Madrid x is",
        target_position={"text": "x"},
        target_layers=2,
    )

    assert (result.before, result.target_token, result.after) == ("Madrid ", "x", " is")
    assert "".join(source.token or "" for source in result.sources) == "Spain"
    assert {patch.target_layer for patch in result.sources[0].patches} == {2}
    assert result.layout == "pairs"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"source_prompts": "a", "target_position": "all"},
            "target_position must be one integer, 'last' or {\"text\": …, \"occurrence\": …}, not 'all'.",
        ),
        (
            {"source_prompts": "a", "target_layers": "some"},
            "target_layers must be 'same', an integer, a list of integers, a range such as '4:20' or 'all', "
            "not 'some'.",
        ),
        (
            {"source_prompts": "a", "target_prompt": ["a", "b"]},
            "target_prompt must be one text, the messages {role, content} of one chat, 'repeat' or 'repeat_chat', "
            "not ['a', 'b'].",
        ),
        (
            {"source_prompts": "a", "target_layers": [1, 2]},
            "2 target_layers cannot take the states of 4 source_layers one by one.",
        ),
        (
            {"source_prompts": "a", "target_position": 99},
            "position 99 does not exist: the target prompt has positions 0 to 33.",
        ),
    ],
)
def test_refuses_what_does_not_fit(tiny_bench: Bench, arguments: dict[str, Any], message: str):
    with pytest.raises(InvalidRequest) as error:
        ask(tiny_bench, **arguments)

    assert error.value.message == message


def test_refuses_too_many_sources(tiny_bench: Bench):
    with pytest.raises(LimitExceeded, match="4 prompts, and this server allows 3 a call"):
        ask(tiny_bench, source_prompts=["a", "b", "c", "d"])


def test_tells_its_progress_and_stops_when_cancelled(tiny_bench: Bench):
    from nnterp_mcp.toolset.patchscope.run import run

    told: list[tuple[float, float | None]] = []

    def hear(progress: Progress) -> None:
        told.append((progress.done, progress.total))
        stopping.stop(Cancelled("the call was cancelled"))

    stopping = Job(1, hear)
    small = Bench("tiny", Settings(batch_tokens=1), tiny_bench.model)

    with pytest.raises(Cancelled):
        run(small, SPEC.parse({"source_prompts": "Spain is"}), stopping)

    assert told == [(0.25, 1)]


def test_arguments_may_come_as_json_text():
    params = SPEC.parse({"source_prompts": "a", "target_layers": "[1, 2]", "source_layers": "[3, 4]"})

    assert params.target_layers == (1, 2)
    assert SPEC.parse({"source_vectors": '["a", "b"]'}).source_vectors == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "patchscope needs either source_prompts or source_vectors, and neither came."),
        (
            {"source_prompts": "a", "source_vectors": "spain"},
            "patchscope needs either source_prompts or source_vectors, and both came.",
        ),
        ({"source_prompts": []}, "prompts is empty: give at least one prompt."),
        ({"source_vectors": []}, "source_vectors must be the name of a vector or a list of names, not []."),
        ({"source_vectors": [1]}, "source_vectors must be the name of a vector or a list of names, not [1]."),
        (
            {"source_vectors": "spain", "source_positions": 2},
            "source_positions are those of source_prompts: source_vectors have none.",
        ),
        (
            {"source_prompts": "a", "factor": 2},
            "factor scales source_vectors: the states of source_prompts are put in as they are.",
        ),
        ({"source_vectors": "rome"}, "tiny has no vector 'rome': its vectors are noise, spain."),
        (
            {"source_vectors": "spain", "target_layers": 2},
            "the vector 'spain' has no direction for layer 2: it has one for layers 1, 3.",
        ),
    ],
)
def test_refuses_sources_that_do_not_fit(keeping: Bench, arguments: dict[str, Any], message: str):
    with pytest.raises(InvalidRequest) as error:
        ask(keeping, **arguments)

    assert error.value.message == message


def test_a_chats_turn_is_a_source(tiny_bench: Bench):
    tokenizer: Any = tiny_bench.model.tokenizer
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    chat = [{"role": "user", "content": "Spain"}, {"role": "assistant", "content": "is"}]
    try:
        result = ask(tiny_bench, source_prompts=chat, source_positions={"role": "user"}, source_layers=1)
    finally:
        tokenizer.chat_template = None

    assert "".join(source.token or "" for source in result.sources).strip() == "Spain"


@pytest.mark.smollm2
def test_through_a_client(warm: serving.Caller):
    result = warm.call("patchscope", source_prompts=QUESTION, targets=TARGETS, source_layers="20:")

    said = serving.text(result)
    assert not result.is_error, said
    assert "reads as capital from layer 23 on" in said
    content = result.structured_content
    assert content is not None
    assert content["finding"] in said
    assert content["total"] == 10
