"""The tool `patchscope`: what it says, how much, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.errors import Cancelled, InvalidRequest, LimitExceeded
from nnterp_mcp.render import rounded
from nnterp_mcp.session.bench import Bench
from nnterp_mcp.session.jobs import Job
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset.patchscope.contract import SPEC
from nnterp_mcp.toolset.patchscope.result import Distribution, Patch, PatchscopeResult, Source
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
    from nnterp_mcp.model.tiny import tiny_model, tiny_tokenizer

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

    assert SPEC.render(answer) == snapshot
    facts = json.dumps(rounded(answer.model_dump()), ensure_ascii=False)
    tokenizer = bench.model.tokenizer
    assert len(tokenizer(SPEC.render(answer))["input_ids"]) <= 1000
    assert len(tokenizer(facts)["input_ids"]) <= 1000


def test_both_channels_say_the_same(tiny_bench: Bench):
    answer = SPEC.digest(ask(tiny_bench, source_prompts="Spain is", targets=TARGETS))

    said = SPEC.render(answer)
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
        Patch(source_layer=layer, target_layer=target if layout == "grid" else layer, **said)
        for layer in range(layers)
        for target in targets
    ]
    source = Source(
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


@pytest.mark.smollm2
@pytest.mark.parametrize("sources", [1, 2, 500])
@pytest.mark.parametrize("layout", ["same", "grid"])
@pytest.mark.parametrize("text", [None, "It is the capital of a country in the Middle East. " * 10])
def test_answers_are_small(bench: Bench, sources: int, layout: str, text: str | None):
    answer = SPEC.digest(made_result(32, sources, text, layout))

    tokenizer = bench.model.tokenizer
    assert len(tokenizer(SPEC.render(answer))["input_ids"]) <= 1000
    assert len(tokenizer(json.dumps(rounded(answer.model_dump()), ensure_ascii=False))["input_ids"]) <= 1000
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
    assert "".join(source.token for source in result.sources) == "Spain"
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
    stopping = Job(1, lambda progress: (told.append((progress.done, progress.total)), stopping.cancel()))
    small = Bench("tiny", Settings(batch_tokens=1), tiny_bench.model)

    with pytest.raises(Cancelled):
        run(small, SPEC.parse({"source_prompts": "Spain is"}), stopping)

    assert told == [(1, 4)]


def test_arguments_may_come_as_json_text():
    params = SPEC.parse({"source_prompts": "a", "target_layers": "[1, 2]", "source_layers": "[3, 4]"})

    assert params.target_layers == (1, 2)


@pytest.mark.smollm2
def test_through_a_client():
    with serving.stdio() as caller:
        caller.call("load_model", model="smollm2-135m")
        result = caller.call("patchscope", source_prompts=QUESTION, targets=TARGETS, source_layers="20:")

    said = serving.text(result)
    assert not result.is_error, said
    assert "reads as capital from layer 23 on" in said
    content = result.structured_content
    assert content is not None
    assert content["finding"] in said
    assert content["total"] == 10
