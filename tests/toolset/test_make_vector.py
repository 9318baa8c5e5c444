"""The tool `make_vector`: what it says, how much, what it keeps and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.errors import Cancelled, Forbidden, InvalidRequest, LimitExceeded
from nnterp_mcp.formatting import rounded
from nnterp_mcp.request.vectors import ModelIdentity, VectorCard
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset.make_vector import SPEC
from nnterp_mcp.toolset.make_vector.result import DirectionFacts, MakeVectorResult
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests import serving

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

JOY = ["I am so happy, what a wonderful", "The party was full of laughter and", "We won the game and"]
GRIEF = ["I am so sad, what a terrible", "The funeral was full of weeping and", "We lost the game and"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def make_bench(folder: Path, seed: int = 0) -> Bench:
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    model = StandardizedTransformer(tiny_model("llama", seed=seed), tokenizer=tiny_tokenizer(), name="tiny")
    settings = Settings(max_prompts=8, data=folder / "data", folders=(folder,))
    return Bench("tiny" if seed == 0 else f"tiny-{seed}", settings, model)


def ask(bench: Bench, job: Job | None = None, **arguments: Any) -> MakeVectorResult:
    """Runs the tool as a worker does, the parameters sent over the wire."""
    from nnterp_mcp.toolset.make_vector.run import run

    sent = SPEC.parse(arguments).model_dump(mode="json")
    result = run(bench, SPEC.params.model_validate(sent), job or Job(1, lambda progress: None))
    return SPEC.result.model_validate_json(result.model_dump_json())


def test_a_kept_vector_can_be_found_and_made_again(bench: Bench) -> None:
    import torch

    result = ask(bench, name="joy", method="mean_difference", positive=JOY, negative=GRIEF, layers=[1, 2])
    found = bench.find_vector("joy")

    assert result.card.layers == [1, 2]
    assert found.shape == (4, bench.model.hidden_size)
    assert found.isnan().any(-1).tolist() == [True, False, False, True]
    again = ask(bench, name="copy", **{k: v for k, v in result.card.request.items() if k != "name"})
    assert again.card.norms == result.card.norms
    assert torch.equal(bench.find_vector("copy")[1], found[1])
    assert [facts.layer for facts in result.directions] == [1, 2]
    assert result.card.versions.keys() >= {"torch", "transformers", "nnterp-mcp"}


@pytest.mark.parametrize(
    ("method", "arguments", "layers"),
    [
        ("mean_difference", {"positive": JOY, "negative": GRIEF[:2]}, [0, 1, 2, 3]),
        ("principal_component", {"positive": JOY, "negative": GRIEF, "positions": [-2, "last"]}, [0, 1, 2, 3]),
        ("activation", {"positive": "We won", "layers": -1}, [3]),
        ("embedding_difference", {"positive": " Paris", "negative": " Madrid"}, []),
        ("unembedding_difference", {"positive": " Paris"}, []),
        ("random", {"norm": 3.0, "seed": 4}, []),
    ],
)
def test_every_method_keeps_what_it_says(
    bench: Bench, method: str, arguments: dict[str, Any], layers: list[int]
) -> None:
    result = ask(bench, name="it", method=method, **arguments)
    found = bench.find_vector("it")

    assert result.card.layers == layers
    rows = found[layers] if layers else found[None]
    assert [round(norm, 4) for norm in result.card.norms] == [round(float(row.norm()), 4) for row in rows]
    scaled = ask(bench, name="it", method=method, **arguments | {"norm": 2.5})
    assert scaled.replaced == result.card.made
    assert [round(norm, 5) for norm in scaled.card.norms] == [2.5] * len(rows)


def test_the_first_token_is_left_out_of_a_mean_over_all(bench: Bench) -> None:
    import torch

    first = bench.model.tokenizer("We")["input_ids"][0]
    with torch.no_grad():
        bench.model.module.get_input_embeddings().weight[first] *= 1000  # an attention sink
    sets = {"positive": ["We won the game", "We saw the sea"], "negative": ["We lost the game", "We met the man"]}
    spared, whole, later = (
        ask(bench, name="it", method="mean_difference", positions=positions, **sets)
        for positions in ("all", "0:", "1:")
    )

    assert spared.card.norms == later.card.norms != whole.card.norms
    assert (spared.first_left_out, later.first_left_out, whole.first_left_out) == (True, False, False)
    assert (spared.dominant, later.dominant) == (None, None)
    assert whole.dominant is not None
    assert whole.dominant.ratio > 100
    named = f"The token {json.dumps(bench.model.tokenizer.decode(first))} (position 0 of prompt "
    assert any(note.startswith(named) and "dominates the mean at layer" in note for note in SPEC.digest(whole).notes)
    assert any("'all' leaves each prompt's first token" in note for note in SPEC.digest(spared).notes)


def test_numbers_come_from_files_in_allowed_folders(bench: Bench, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    width = bench.model.hidden_size
    (tmp_path / "one.json").write_text(json.dumps([1.0] * width))
    save_file({"rows": torch.ones(2, width, dtype=torch.bfloat16)}, tmp_path / "rows.safetensors")
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "two.safetensors")
    (tmp_path / "text.json").write_text('["a"]')

    assert ask(bench, name="one", method="file", file="one.json").card.layers == []
    assert ask(bench, name="rows", method="file", file="rows.safetensors", layers="1:3").card.layers == [1, 2]
    with pytest.raises(InvalidRequest, match="has 2 directions for 4 layers"):
        ask(bench, name="rows", method="file", file="rows.safetensors")
    with pytest.raises(InvalidRequest, match="it holds 2 tensors: a, b"):
        ask(bench, name="two", method="file", file="two.safetensors")
    with pytest.raises(InvalidRequest, match=r"text\.json cannot be read as numbers"):
        ask(bench, name="text", method="file", file="text.json")
    with pytest.raises(Forbidden):
        ask(bench, name="out", method="file", file="/etc/hostname")


def test_deleting(bench: Bench) -> None:
    ask(bench, name="joy", method="random", norm=1)

    assert ask(bench, name="joy", method="delete").deleted
    with pytest.raises(InvalidRequest, match="tiny has no vector 'joy'"):
        ask(bench, name="joy", method="delete")


def test_a_vector_of_other_weights_is_refused(bench: Bench, tmp_path: Path) -> None:
    ask(bench, name="joy", method="random", norm=1)
    other = make_bench(tmp_path, seed=1)

    with pytest.raises(InvalidRequest, match=r"the vector 'joy' does not belong to tiny-1 .* it was made on tiny"):
        other.find_vector("joy")
    assert make_bench(tmp_path).find_vector("joy").shape == (bench.model.hidden_size,)


def test_the_fingerprint_stays_with_the_weights() -> None:
    import torch

    from nnterp_mcp.model.loading.fingerprint import fingerprint
    from nnterp_mcp.verification.tiny import tiny_model

    model = tiny_model("llama")
    mark = fingerprint(model)
    assert fingerprint(tiny_model("llama")) == mark
    assert fingerprint(model.to(torch.bfloat16).float()) == mark
    assert fingerprint(model.to(torch.bfloat16)) == mark
    assert fingerprint(tiny_model("llama", seed=1)) != mark
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    assert fingerprint(model) != mark


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "mean_difference", "positive": JOY}, "the method mean_difference needs negative"),
        ({"method": "random"}, "the method random needs norm"),
        ({"method": "random", "norm": -1}, "norm: input should be greater than 0, not -1"),
        ({"method": "random", "norm": 1, "positive": JOY, "layers": 3}, "takes no positive and no layers"),
        ({"method": "delete", "norm": 1}, "the method delete takes no norm"),
        ({"method": "embedding_difference", "positive": JOY}, "takes one text on either side"),
        ({"method": "file"}, "the method file needs file"),
        ({"method": "random", "norm": 1, "run": "r"}, "the method random takes no run"),
        ({"method": "activation", "run": "r", "positions": 1}, "positions was settled when r collected its states"),
        ({"method": "sum"}, "method: input should be 'mean_difference'"),
        ({"method": "random", "norm": 1, "name": "../joy"}, "a name has 1 to 64 letters"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SPEC.parse({"name": "joy"} | arguments)


def test_refusals_in_the_worker(bench: Bench) -> None:
    pair = {"positive": JOY, "negative": GRIEF}
    with pytest.raises(InvalidRequest, match="layer 4 does not exist: tiny has layers 0 to 3"):
        ask(bench, name="joy", method="mean_difference", layers=[4], **pair)
    with pytest.raises(InvalidRequest, match="3 positive and 1 negative prompts are no pairs"):
        ask(bench, name="joy", method="principal_component", positive=JOY, negative="We lost")
    with pytest.raises(LimitExceeded, match="12 prompts, and this server allows 8 a call"):
        ask(bench, name="joy", method="mean_difference", positive=JOY * 2, negative=GRIEF * 2)
    assert bench.vectors.cards() == []


def test_a_cancelled_call_keeps_nothing(bench: Bench) -> None:
    job = Job(1, lambda progress: None)
    job.stop(Cancelled("the client cancelled the call"))

    with pytest.raises(Cancelled):
        ask(bench, job, name="joy", method="mean_difference", positive=JOY, negative=GRIEF)
    assert bench.vectors.cards() == []


def made_result(layers: int = 32, **changes: Any) -> MakeVectorResult:
    card = VectorCard(
        name="joy",
        model="smollm2-135m",
        identity=ModelIdentity(architecture="LlamaForCausalLM", hidden_size=576, fingerprint="0123456789abcdef"),
        method="mean_difference",
        layers=list(range(layers)),
        norms=[8.125 + layer for layer in range(layers)],
        request={},
        versions={},
        made="2026-01-01T00:00:00.000+00:00",
    )
    facts = [
        DirectionFacts(
            layer=layer,
            norm=8.125 + layer,
            stream=45.67 + layer,
            positive=12.345,
            negative=-23.456,
            effect=1.234,
            held_out=min(1.0, 0.5 + layer / 20),
        )
        for layer in range(layers)
    ]
    fields: dict[str, Any] = {"model": "smollm2-135m", "card": card, "prompts": (10, 10), "directions": facts}
    return MakeVectorResult.model_validate(fields | changes)


def test_says(snapshot: SnapshotAssertion) -> None:
    answer = SPEC.digest(made_result())

    assert answer.text() == snapshot
    assert answer.truncated


@pytest.mark.parametrize("case", ["replaced", "few", "chance", "deleted"])
def test_says_what_is_particular(snapshot: SnapshotAssertion, case: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "replaced": {"replaced": "2025-01-01T00:00:00.000+00:00"},
        "few": {"prompts": (3, 2)},
        "chance": {"directions": [DirectionFacts(layer=0, norm=1, effect=4.0, held_out=0.4, positive=1, negative=0)]},
        "deleted": {"deleted": True, "directions": []},
    }
    assert SPEC.digest(made_result(2, **changes[case])).text() == snapshot


@pytest.mark.smollm2
def test_answers_are_small(smollm2_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    for layers in (1, 32, 80):
        answer = SPEC.digest(made_result(layers, first_left_out=True))
        assert len(tokenizer(answer.text())["input_ids"]) <= 900
        assert len(tokenizer(json.dumps(rounded(answer.structured()), ensure_ascii=False))["input_ids"]) <= 1000


@pytest.mark.slow
def test_through_a_real_client(tmp_path: Path, tiny: Any) -> None:
    with serving.stdio(data=tmp_path / "data") as caller:
        caller.call("load_model", model=str(tiny("llama")))
        made = caller.call("make_vector", name="joy", method="mean_difference", positive=JOY, negative=GRIEF)
        again = caller.call("make_vector", name="noise", method="random", norm=2)
        steered = caller.call("steer", prompts="We", vector="joy", layers=[1, 2], factors=[1, 4], control=True)
        session = caller.call("session")
        wrong = caller.call("steer", prompts="We", vector="grief", layers=1, factors=1)
        caller.call("unload_model")
        caller.call("load_model", model=str(tiny("llama", 1)))
        other = caller.call("steer", prompts="We", vector="joy", layers=1, factors=1)

    assert serving.text(made).startswith("The vector joy of tiny-llama is made (mean_difference; 4 layers, norm ")
    assert serving.text(again).startswith("The vector noise of tiny-llama is made (random; any layer, norm 2).")
    assert "the vector 'joy'" in serving.text(steered)
    assert [row[0] for row in session.structured_content["vectors"]["rows"]] == ["noise", "joy"]
    assert "tiny-llama has no vector 'grief': its vectors are noise, joy." in serving.text(wrong)
    assert "does not belong to tiny-llama-seed-1" in serving.text(other)
    assert other.is_error
