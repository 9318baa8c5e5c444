"""The tool `fit_lens`, and what other tools do with a lens: what is kept, read, merged and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnterp_mcp.errors import Cancelled, InvalidRequest
from nnterp_mcp.toolset import specs
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests.toolset.test_make_vector import make_bench

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

TEXTS = ["The mill on the second bend of the river was built", "In the year that the bridge was closed the baker"]
PROMPT = "The capital of France is"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def ask(bench: Bench, tool: str, job: Job | None = None, **arguments: Any) -> Any:
    """Runs a tool as a worker does, the result sent over the wire."""
    from importlib import import_module

    spec = specs()[tool]
    run = import_module(f"nnterp_mcp.toolset.{tool}.run").run
    result = run(bench, spec.parse(arguments), job or Job(1, lambda progress: None))
    return spec.result.model_validate_json(result.model_dump_json())


def test_a_fitted_lens_reads_other_texts_better_than_the_logit_lens(bench: Bench) -> None:
    for method in ("jacobian", "tuned"):
        fitted = ask(bench, "fit_lens", name="own", method=method, prompts=TEXTS, skip_first=2)
        read = ask(bench, "logit_lens", prompts=PROMPT, lens="own")

        assert (fitted.card.prompts, [one.layer for one in fitted.layers]) == (2, [0, 1, 2])
        assert sum(one.kl for one in fitted.layers) < sum(one.plain_kl for one in fitted.layers)
        assert read.fitted == fitted.card
        plain = ask(bench, "logit_lens", prompts=PROMPT).readings[0]
        assert [layer.plain for layer in read.readings[0].layers] == [layer.top[0] for layer in plain.layers]
        assert read.readings[0].plain_leads_from == plain.leads_from


@pytest.mark.parametrize("method", ["jacobian", "tuned"])
def test_a_lens_that_is_merged_is_that_of_all_prompts(bench: Bench, method: str) -> None:
    import torch

    from nnterp_mcp.worker.lenses import find_lens

    whole = ask(bench, "fit_lens", name="whole", method=method, prompts=TEXTS, skip_first=2)
    ask(bench, "fit_lens", name="part", method=method, prompts=TEXTS[:1], skip_first=2)
    merged = ask(bench, "fit_lens", name="part", method=method, prompts=TEXTS[1:], skip_first=2, merge="part")

    assert (merged.card.prompts, merged.merged, merged.replaced) == (2, 1, False)
    ours, theirs = find_lens(bench, "part"), find_lens(bench, "whole")
    assert ours is not None
    assert theirs is not None
    for layer in (0, 1, 2):
        torch.testing.assert_close(ours[0].matrices[layer], theirs[0].matrices[layer], atol=1e-6, rtol=0)
    assert merged.layers[0].kl == pytest.approx(whole.layers[0].kl, abs=1e-5)
    again = ask(bench, "fit_lens", name="twice", method=method, prompts=TEXTS, skip_first=2, merge="part")
    assert (again.card.prompts, again.merged) == (2, 2)  # no text counts twice


@pytest.mark.parametrize("method", ["jacobian", "tuned"])
def test_a_fit_that_was_stopped_is_resumed_by_the_same_call(
    bench: Bench, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(Bench, "batch_tokens", 1)  # one prompt in a batch

    from nnterp_mcp.worker.lenses import read_saved_lens

    asked = {"name": "cut", "method": method, "prompts": [*TEXTS, TEXTS[0]], "skip_first": 2}

    def send(progress: Any) -> None:
        if 1 <= progress.done < 2:
            job.stop(Cancelled("cancelled"))

    job = Job(1, send)
    with pytest.raises(Cancelled):
        ask(bench, "fit_lens", job, **asked)

    assert job.partial is not None
    stopped = job.partial()
    assert stopped is not None
    answer = specs()["fit_lens"].summarize(stopped)
    assert "fitted on 1 prompt" in answer.finding
    assert "the same call resumes it" in answer.finding
    resumed = ask(bench, "fit_lens", **asked)
    again = ask(bench, "fit_lens", **asked)
    whole = ask(bench, "fit_lens", **asked | {"name": "whole"})
    assert [(fit.card.prompts, fit.resumed, fit.replaced) for fit in (resumed, again, whole)] == [
        (2, 1, False),
        (2, 2, False),
        (2, 0, False),
    ]
    ours, theirs = read_saved_lens(bench, "cut"), read_saved_lens(bench, "whole")
    assert ours is not None
    assert theirs is not None
    for layer in (0, 1, 2):
        torch.testing.assert_close(ours.matrices[layer], theirs.matrices[layer], atol=1e-6, rtol=0)
    assert ask(bench, "fit_lens", **asked | {"skip_first": 3}).replaced


def test_token_directions_are_pulled_back_through_a_lens(bench: Bench) -> None:
    import torch

    from nnterp_mcp.worker.lenses import find_lens

    ask(bench, "fit_lens", name="own", method="jacobian", prompts=TEXTS, skip_first=2)
    texts = {"positive": [" the"], "negative": [" of"], "method": "unembedding_difference"}
    plain = ask(bench, "make_vector", name="plain", **texts)
    made = ask(bench, "make_vector", name="through", lens="own", **texts)

    assert (plain.card.layers, made.card.layers) == ([], [0, 1, 2, 3])
    lens = find_lens(bench, "own")
    assert lens is not None
    head, tokenizer = bench.model.module.get_parameter("lm_head.weight"), bench.model.tokenizer
    the, of = (head[tokenizer(word, add_special_tokens=False)["input_ids"]].mean(0) for word in (" the", " of"))  # pyright: ignore
    torch.testing.assert_close(bench.find_vector("through")[1], (the - of) @ lens[0].matrices[1])
    torch.testing.assert_close(bench.find_vector("through")[3], bench.find_vector("plain"))


def test_a_patchscope_shows_what_a_lens_reads_in_the_states_themselves(bench: Bench) -> None:
    ask(bench, "fit_lens", name="own", method="tuned", prompts=TEXTS, skip_first=2)
    ask(bench, "make_vector", name="state", positive=[PROMPT], method="activation", layers=[0, 2, 3])

    found = ask(bench, "patchscope", source_prompts=[PROMPT, TEXTS[0]], source_layers=[0, 2, 3], lens="own")
    put = ask(bench, "patchscope", source_vectors="state", lens="own", targets={"own": " is"}, source_layers=2)

    read = ask(bench, "logit_lens", prompts=[PROMPT, TEXTS[0]], lens="own", layers=[0, 2, 3], top_k=1)
    targeted = ask(bench, "logit_lens", prompts=PROMPT, lens="own", targets={"own": " is"})
    assert found.fitted == put.fitted == read.fitted
    for own, theirs in zip(found.sources, read.readings, strict=True):
        assert own.answer == theirs.layers[-1].top[0][0]
        for state, layer in zip(own.states, theirs.layers, strict=True):
            assert (state.layer, state.top[0], state.plain_top[0]) == (layer.layer, layer.top[0][0], layer.plain[0])
            assert [state.top[1], state.plain_top[1]] == pytest.approx([layer.top[0][1], layer.plain[1]], abs=1e-6)
    (state,) = put.sources[0].states
    assert state.tracked[0] == pytest.approx(targeted.readings[0].layers[2].targets[0], abs=1e-6)
    said = specs()["patchscope"].summarize(found)
    assert said.table is not None
    assert said.table.columns[-2:] == ["own next by tuned lens", "by logit lens"]
    with pytest.raises(InvalidRequest, match="needs no fit"):
        ask(bench, "patchscope", source_prompts=PROMPT, lens="logit")


def test_states_are_decomposed_into_the_directions_of_a_lens(bench: Bench) -> None:
    from nnterp_mcp import Workload, shuffled
    from nnterp_mcp.experiments.activations import read_states
    from nnterp_mcp.experiments.translated_lens.decomposition import (
        TokenDirections,
        decompose_states,
        rotate_at_random,
    )
    from nnterp_mcp.worker.lenses import find_lens

    ask(bench, "fit_lens", name="own", method="jacobian", prompts=TEXTS, skip_first=2)
    asked = {"prompts": PROMPT, "positions": [1, -1], "layers": [1, 3], "decompose": 3}

    found = ask(bench, "logit_lens", lens="own", **asked)

    lens = find_lens(bench, "own")
    assert lens is not None
    places = [reading.position for reading in found.readings]
    states = read_states(bench.model, Workload(bench.encode([PROMPT])), [places], [1, 3])
    own, other = (TokenDirections.of(bench.model, one, 1) for one in (lens[0], shuffled(lens[0])))
    plain = TokenDirections.of(bench.model)
    for at, reading in enumerate(found.readings):
        state, (early, last) = states[at, :1], (layer.decomposition for layer in reading.layers)
        shares = [
            float(decompose_states(given, directions, 3).explained[0, -1])
            for given, directions in ((state, own), (rotate_at_random(state), own), (state, plain), (state, other))
        ]
        assert [early.explained, *early.controls.values()] == pytest.approx(shares, abs=1e-6)
        assert list(early.controls) == ["rotated", "unembedding", "other layers"]
        assert [weight for _, weight in early.tokens] == sorted((one for _, one in early.tokens), reverse=True)
        assert list(last.controls) == ["rotated"]
    several, one = found, ask(bench, "logit_lens", **asked | {"positions": "last"})
    for result in (several, one):
        answer = specs()["logit_lens"].summarize(result)
        assert answer.table is not None
        assert {"sum of token directions", "explained", "rotated"} <= set(answer.table.columns)
    with pytest.raises(InvalidRequest, match="for the logit lens and for fitted lenses"):
        ask(bench, "logit_lens", lens="inverse", **asked)


def test_what_cannot_be_fitted_or_merged_is_refused(bench: Bench) -> None:
    fit = {"name": "own", "method": "jacobian", "prompts": TEXTS[:1], "skip_first": 2, "layers": [1]}
    ask(bench, "fit_lens", **fit)

    with pytest.raises(InvalidRequest, match="tiny has no lens 'none'; its fitted lenses: own"):
        ask(bench, "logit_lens", prompts=PROMPT, lens="none")
    with pytest.raises(InvalidRequest, match="needs no fit"):
        ask(bench, "fit_lens", **fit | {"name": "logit"})
    with pytest.raises(InvalidRequest, match="cannot be merged with a tuned lens"):
        ask(bench, "fit_lens", **fit | {"method": "tuned", "merge": "own"})
    with pytest.raises(InvalidRequest, match="has layers 1, and cannot be merged"):
        ask(bench, "fit_lens", **fit | {"name": "b", "merge": "own", "layers": [0, 1]})
    with pytest.raises(InvalidRequest, match="leaves out the first 2 tokens"):
        ask(bench, "fit_lens", **fit | {"name": "b", "merge": "own", "skip_first": 3})
    with pytest.raises(InvalidRequest, match="before the last"):
        ask(bench, "fit_lens", **fit | {"layers": [3]})
