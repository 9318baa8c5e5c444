"""`generate` and the lens with interventions, called by a real client on the default model."""

from __future__ import annotations

from typing import Any

import pytest

from nnterp_mcp.toolset.generate.answer import digest
from nnterp_mcp.toolset.generate.result import Continuation, Continued, GenerateResult
from tests.serving import Caller, text

LOVE = {"op": "add", "layers": 15, "vector": {"positive": " love", "negative": " hate"}, "factor": 20}


def test_a_prompt_is_continued(warm: Caller) -> None:
    result = warm.call("generate", prompts="The capital of France is", max_new_tokens=8)
    assert not result.is_error
    answer: Any = result.structured_content
    assert answer["table"]["columns"] == ["tokens", "stop", "mean log-prob", "perplexity", "text"]
    assert answer["table"]["rows"][0][-1].startswith(" Paris.")
    assert '" Paris.' in text(result)
    assert "run_id" not in answer or answer["run_id"]


def test_edited_text_stands_beside_its_baseline(warm: Caller) -> None:
    result = warm.call(
        "generate", prompts=["I think that you are", "Paris"], interventions=[LOVE], max_new_tokens=12, logprobs=True
    )
    answer: Any = result.structured_content
    rows = [dict(zip(answer["table"]["columns"], row, strict=True)) for row in answer["table"]["rows"]]
    assert [(row["prompt"], row["run"]) for row in rows] == [(i, run) for i in (0, 1) for run in ("baseline", "edited")]
    assert rows[0]["text"] != rows[1]["text"]
    assert rows[1]["differs at"] == 0
    assert len(rows[0]["token log-probs"]) == 12
    assert any(
        "× ' love' − ' hate' at layers_output, layer 15, all positions, every step." in note for note in answer["notes"]
    )
    assert "edited" in text(result)


def test_a_seed_gives_the_same_text_again(warm: Caller) -> None:
    asked: dict[str, Any] = {"prompts": "Once upon a time", "temperature": 1.2, "top_p": 0.9, "max_new_tokens": 8}
    first, again, other = (warm.call("generate", seed=seed, **asked) for seed in (4, 4, 5))
    for answer in (first, again, other):
        del answer.structured_content["run_id"]
    assert first.structured_content == again.structured_content
    assert first.structured_content != other.structured_content


def test_the_lens_reads_an_edited_model(warm: Caller) -> None:
    skipped = [{"op": "skip", "layers": "20:"}]
    result = warm.call("logit_lens", prompts="The capital of France is", layers=[19, 25, 29], interventions=skipped)
    answer: Any = result.structured_content
    tops = [row[1] for row in answer["table"]["rows"]]
    assert tops[0] == tops[1] == tops[2]
    assert "Active interventions: skip, layers 20:, every step." in text(result)


def test_what_cannot_be_is_refused_in_one_line(warm: Caller) -> None:
    for intervention, said in (
        ({"op": "skip", "layers": 30}, "layer 30 does not exist: smollm2-135m has layers 0 to 29."),
        ({"op": "zero", "layers": 4, "heads": 9}, "head 9 does not exist: layer 4 of smollm2-135m has heads 0 to 8."),
        ({"op": "erase"}, "there is no op 'erase'"),
    ):
        result = warm.call("generate", prompts="Hi", interventions=[intervention])
        assert result.is_error
        assert said in text(result)


@pytest.mark.parametrize("prompts", [1, 3, 200])
@pytest.mark.parametrize("logprobs", [False, True])
def test_an_answer_is_small_and_counts_what_it_leaves_out(prompts: int, logprobs: bool) -> None:
    long = Continuation(text="word " * 2000, tokens=["word "] * 2000, log_probs=[-1.5] * 2000, ended=False)
    one = Continued(index=0, prompt="a", prompt_tokens=1, baseline=long, edited=long, differs_at=None)
    result = GenerateResult(model="m", interventions=["skip of layer 1"], logprobs=logprobs, texts=[one] * prompts)
    answer = digest(result)
    assert answer.truncated
    assert answer.total == 2 * prompts
    shown = answer.text()
    assert len(shown) < 4200
    assert "not shown" in shown


def test_no_new_tokens_scores_the_prompts(warm: Caller) -> None:
    asked: dict[str, Any] = {"prompts": ["The capital of France is Paris", "Paris is capital France of the"]}
    answer: Any = warm.call("generate", max_new_tokens=0, **asked).structured_content
    likely, odd = (row[answer["table"]["columns"].index("perplexity")] for row in answer["table"]["rows"])
    assert likely < odd / 4
    assert answer["finding"].startswith("Mean log-probability of 10 tokens after the first: unedited ")

    skipped = [{"op": "skip", "layers": "10:"}]
    edited: Any = warm.call("generate", max_new_tokens=0, interventions=skipped, **asked).structured_content
    by_run = {row[1]: row for row in edited["table"]["rows"][:2]}
    perplexity = edited["table"]["columns"].index("perplexity")
    assert by_run["baseline"][perplexity] == likely < by_run["edited"][perplexity]
