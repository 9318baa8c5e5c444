"""The tool `attention_probs`: what it says, how much, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.errors import Cancelled, InvalidRequest, LimitExceeded, NnterpError, Unsupported
from nnterp_mcp.formatting import rounded
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset.attention_probs import SPEC
from nnterp_mcp.toolset.attention_probs.result import (
    AttendedPair,
    AttentionProbsAnswer,
    AttentionProbsResult,
    Copying,
    HeadRead,
    HeadReading,
    KindScores,
    Masses,
    QueryReading,
)
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests import serving

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

GIFT = "When Mary and John went to the store, John gave a drink to"
PARIS = "The capital of France is"


@pytest.fixture(scope="module")
def bench(smollm2_folder: Path) -> Bench:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nnterp_mcp.model.standardized import StandardizedTransformer

    weights: Any = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    name = "smollm2-135m"
    return Bench(name, Settings(), StandardizedTransformer(weights, tokenizer=tokenizer, name=name))


def tiny_bench(family: str) -> Bench:
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    model = StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), name=family)
    return Bench(family, Settings(max_prompts=3), model)


@pytest.fixture(scope="module")
def llama() -> Bench:
    return tiny_bench("llama")


@pytest.fixture(scope="module")
def hybrid() -> Bench:
    return tiny_bench("qwen3_next")


def job() -> Job:
    return Job(1, lambda progress: None)


def ask(bench: Bench, **arguments: Any) -> AttentionProbsResult:
    from nnterp_mcp.toolset.attention_probs.run import run

    return AttentionProbsResult.model_validate_json(run(bench, SPEC.parse(arguments), job()).model_dump_json())


def channels(answer: AttentionProbsAnswer) -> tuple[str, str]:
    return answer.text(), json.dumps(rounded(answer.structured()), ensure_ascii=False)


@pytest.mark.smollm2
@pytest.mark.parametrize(
    "arguments",
    [
        {"prompts": GIFT},
        {"prompts": GIFT, "query_positions": "last"},
        {"prompts": [GIFT, PARIS], "query_positions": [-1, -2], "layers": "10:20", "kinds": True},
        {"prompts": [GIFT, PARIS], "layers": 17},
        {"prompts": GIFT, "interventions": [{"op": "knockout", "layers": [17, 18], "heads": [3, 4, 5, 6, 7]}]},
        {"prompts": GIFT, "interventions": [{"op": "knockout", "layers": 17, "key_positions": {"text": "John"}}]},
        {"prompts": "Hi"},
    ],
    ids=["plain", "query", "queries", "layer", "knockout", "knockout of a word", "one token"],
)
def test_says(bench: Bench, snapshot: SnapshotAssertion, arguments: dict[str, Any]):
    answer = SPEC.digest(ask(bench, **arguments))

    said, facts = channels(answer)
    assert said == snapshot
    assert len(bench.model.tokenizer(said)["input_ids"]) <= 1000
    assert len(bench.model.tokenizer(facts)["input_ids"]) <= 1000


def test_a_stopped_run_keeps_the_prompts_that_it_had(llama: Bench) -> None:
    from nnterp_mcp.toolset.attention_probs.run import run

    prompts = ["a b c d e f", "b c", "a d c b"]
    bench = Bench(llama.handle, llama.settings.model_copy(update={"batch_tokens": 1}), llama.model)
    stopped = Job(1, lambda progress: stopped.stop(Cancelled("stopped")) if progress.done == 1 else None)
    with pytest.raises(Cancelled):
        run(bench, SPEC.parse({"prompts": prompts, "query_positions": "last", "kinds": True}), stopped)
    assert stopped.partial is not None
    kept = stopped.partial()
    assert isinstance(kept, AttentionProbsResult)
    alone = ask(llama, prompts=[prompts[0], prompts[2]], query_positions="last", kinds=False)

    assert (kept.prompts, [query.prompt for query in kept.queries]) == (2, [0, 2])
    assert [head.mean.entropy for head in kept.heads] == pytest.approx([head.mean.entropy for head in alone.heads])
    assert {pair.prompt for head in kept.heads for pair in head.pairs} <= {0, 2}
    assert "Kinds of heads were not scored: the run was stopped before." in SPEC.digest(kept).text()


def made_result(layers: int, heads: int, queries: int = 0) -> AttentionProbsResult:
    """A result with wide cells, for measuring answers without a model."""
    masses = Masses(**dict.fromkeys(Masses.model_fields, 0.123456))
    places = [(layer, head) for layer in range(layers) for head in range(heads)]
    pair = AttendedPair(
        prompt=0, query=123, query_token=" Constantinople", key=45, key_token=" Liechtenstein", probability=0.98765
    )
    read = [(" Constantinople", 123, 0.54321), (" Liechtenstein", 45, 0.2468), (" the", 7, 0.12345)]
    return AttentionProbsResult(
        model="some-model",
        prompts=7,
        without_attention={"linear_attention": list(range(0, 60, 2))},
        interventions=["knockout of layers 17, 18, 19 heads 3, 4, 5"] * 3,
        unscored=None,
        copying=Copying(
            sequences=4, length=50, seed=0, probability=0.34567, log_probability=-2.34567, deviation=0.7654
        ),
        heads=[
            HeadReading(
                layer=layer,
                head=head,
                mean=masses,
                deviation=masses,
                kinds=KindScores(previous=0.12345, duplicate=0.23456, induction=0.34567),
                pairs=[pair],
            )
            for layer, head in places
        ],
        queries=[
            QueryReading(
                prompt=0,
                position=at,
                token=" Constantinople",
                heads=[HeadRead(layer=layer, head=head, first=0.43210, keys=read) for layer, head in places],
            )
            for at in range(queries)
        ],
    )


@pytest.mark.smollm2
@pytest.mark.parametrize("queries", [0, 1, 5, 50])
def test_answers_of_large_models_stay_small(bench: Bench, queries: int):
    answer = SPEC.digest(made_result(80, 12, queries))

    for said in channels(answer):
        assert len(bench.model.tokenizer(said)["input_ids"]) <= 1200  # a crowd of notes and wide words
    assert answer.truncated
    assert "not shown" in answer.notes[0]


def test_both_channels_say_the_same(llama: Bench):
    for queries in ({}, {"query_positions": "all"}):
        answer = SPEC.digest(ask(llama, prompts=["Spain is", "one two one"], **queries))

        said = answer.text()
        assert all(str(row[0]) in said for row in answer.table.rows)
        assert answer.finding in said
        assert all(note in said for note in answer.notes)


def test_means_and_deviations_over_prompts(llama: Bench):
    together = ask(llama, prompts=["Spain is", "one two one"], kinds=False)
    alone = [ask(llama, prompts=prompt, kinds=False) for prompt in ("Spain is", "one two one")]

    for head, first, second in zip(together.heads, alone[0].heads, alone[1].heads, strict=True):
        assert first.deviation is None
        assert head.deviation is not None
        entropies = [item.mean.entropy or 0.0 for item in (first, second)]
        assert head.mean.entropy == pytest.approx(sum(entropies) / 2, abs=1e-5)
        assert head.deviation.entropy == pytest.approx(abs(entropies[0] - entropies[1]) / 2, abs=1e-5)
        strongest = max(first.pairs[0], second.pairs[0], key=lambda pair: pair.probability)
        assert head.pairs[0].probability == pytest.approx(strongest.probability, abs=1e-5)
        assert head.pairs[0].query_token == strongest.query_token


def test_the_kinds_of_heads_are_scored_unless_queries_are_named(llama: Bench):
    assert ask(llama, prompts="Spain").copying is not None
    assert ask(llama, prompts="Spain", kinds=False).copying is None
    assert ask(llama, prompts="Spain", query_positions=-1).copying is None
    assert ask(llama, prompts="Spain", query_positions=-1, kinds=True).heads[0].kinds is not None


def test_the_kinds_of_the_unedited_model_are_scored_once(llama: Bench):
    from nnterp_mcp.model.loading.trials import forget

    passes: list[None] = []
    hook = llama.model.module.get_input_embeddings().register_forward_hook(lambda *_: passes.append(None))
    forget(llama.model.module)
    try:
        counts: list[int] = []
        for layers in ("all", "all", 1, 1):
            passes.clear()
            found = ask(llama, prompts="Spain", layers=layers)
            counts.append(len(passes))
    finally:
        hook.remove()

    assert counts == [2, 1, 1, 1]
    expected = ask(llama, prompts="Rome", layers="all")
    own = {(head.layer, head.head): head.kinds for head in expected.heads}
    for head in found.heads:
        assert head.kinds is not None
        assert head.kinds == pytest.approx(own[head.layer, head.head])


def test_kinds_are_scored_again_when_weights_change(llama: Bench):
    before = ask(llama, prompts="Spain")
    weights = llama.model.anatomy.layers[0].block.module.self_attn.v_proj.weight.data
    weights *= 2
    try:
        changed = ask(llama, prompts="Spain")
    finally:
        weights /= 2

    assert changed.copying != before.copying
    assert ask(llama, prompts="Spain").copying == before.copying


def test_interventions_reach_the_random_tokens_too(llama: Bench):
    plain = ask(llama, prompts="Spain")
    cut = ask(llama, prompts="Spain", interventions=[{"op": "knockout", "layers": "all"}])

    assert plain.copying is not None
    assert cut.copying is not None
    assert cut.copying.log_probability != plain.copying.log_probability
    assert all(head.kinds is not None and head.kinds.previous == 0 for head in cut.heads)
    assert cut.interventions == ["knockout, all layers, all heads, all queries, all keys, every step"]


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "knockout", "layers": 1, "key_positions": 1},
        {"op": "zero", "site": "mlps_output", "layers": 1, "positions": "last"},
        {"op": "skip", "layers": 1, "prompts": 0},
        {"op": "patch", "layers": 1, "from": {"prompt": "Spain is"}},
    ],
)
def test_kinds_are_not_scored_where_interventions_mean_the_prompts(llama: Bench, operation: dict[str, Any]):
    result = ask(llama, prompts="Spain is", interventions=[operation])

    assert result.copying is None
    assert result.unscored == "the interventions name positions or prompts, which random tokens do not have"
    assert f"Kinds of heads were not scored: {result.unscored}." in SPEC.digest(result).notes


def test_layers_without_attention_and_sinks_are_named(hybrid: Bench):
    notes = SPEC.digest(ask(hybrid, prompts="Spain is")).notes
    assert "Without attention, and not read: layers 0, 2 (linear_attention)." in notes
    notes = SPEC.digest(ask(tiny_bench("gpt_oss"), prompts="Spain is")).notes
    assert any(note.startswith("Rows sum to less than 1") for note in notes)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"heads": 4}, InvalidRequest, "head 4 does not exist: layer 0 of llama has heads 0 to 3."),
        ({"layers": [9]}, InvalidRequest, "layer 9 does not exist: llama has layers 0 to 3."),
        ({"query_positions": 99}, InvalidRequest, "position 99 does not exist: prompt 0 has positions 0 to 3."),
        ({"prompts": ["a"] * 4}, LimitExceeded, "4 prompts, and this server allows 3 a call."),
        (
            {"interventions": [{"op": "knockout", "layers": 0, "key_positions": 0}], "kinds": True},
            InvalidRequest,
            "kinds of heads cannot be scored: the interventions name positions or prompts, which random tokens do not "
            "have.",
        ),
        ({"top_k": 0}, InvalidRequest, "top_k: input should be greater than or equal to 1, not 0."),
        ({"query": 1}, InvalidRequest, "attention_probs has no argument 'query'"),
        (
            {"heads": "first"},
            InvalidRequest,
            "heads must be an integer, a list of integers, a range such as '0:4' or 'all', not 'first'.",
        ),
    ],
)
def test_refusals(llama: Bench, arguments: dict[str, Any], error: type[NnterpError], message: str):
    with pytest.raises(error) as raised:
        ask(llama, **{"prompts": "Spain is", **arguments})
    assert raised.value.message.startswith(message)


def test_a_layer_without_attention_is_refused(hybrid: Bench):
    with pytest.raises(Unsupported, match="layer 0 of qwen3_next has no attention"):
        ask(hybrid, prompts="Spain", layers=0)


def test_too_many_reads_are_refused(llama: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nnterp_mcp.toolset.attention_probs.run._KEYS", 10)
    with pytest.raises(LimitExceeded, match="these queries would name 48 keys, and a call may name 10"):
        ask(llama, prompts="Spain is", query_positions=-1)


def test_a_cancelled_call_stops_and_attention_is_as_before(llama: Bench):
    from nnterp_mcp.toolset.attention_probs.run import run

    cancelled = job()
    cancelled.stop(Cancelled("the client cancelled the call"))
    before = llama.model.attention
    with pytest.raises(Cancelled):
        run(llama, SPEC.parse({"prompts": "Spain"}), cancelled)
    assert llama.model.attention == before


@pytest.mark.smollm2
def test_a_client_finds_induction_heads_and_cuts_them(warm: serving.Caller):
    plain = warm.call("attention_probs", prompts=GIFT)
    assert not plain.is_error, serving.text(plain)
    heads = [row[0] for row in plain.structured_content["table"]["rows"] if row[1] == "induction"]
    knockouts = [
        {"op": "knockout", "layers": int(layer), "heads": int(head)}
        for layer, head in (name.removeprefix("L").split("H") for name in heads)
    ]
    cut = warm.call("attention_probs", prompts=GIFT, layers=0, interventions=knockouts)

    assert heads == ["L18H6", "L17H3", "L17H4", "L17H5"]
    assert plain.structured_content["copying"] > 0.3
    assert cut.structured_content["copying"] < 0.05
    assert "induction L18H6" in serving.text(plain)
