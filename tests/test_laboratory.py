"""The tools as methods: the same numbers as the server's and as plain transformers', and the same words."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nnterp_mcp.errors import Forbidden, InvalidRequest, NnterpError, UnknownModel
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset import specs
from tests.recorded import EXAMPLES, Recorded

if TYPE_CHECKING:
    from nnterp_mcp.laboratory import Laboratory

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.


@pytest.fixture(scope="module")
def folder(tiny: Callable[..., Path]) -> Path:
    return tiny("llama")


@pytest.fixture(scope="module")
def lab(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    from nnterp_mcp import Laboratory

    return Laboratory(str(folder), dtype="float32", settings=Settings(data=tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module", autouse=True)
def made(lab: Laboratory) -> None:
    """The vectors that the examples use."""
    for tool, arguments in EXAMPLES.values():
        if tool == "make_vector":
            lab.call(tool, **arguments)


def test_every_recorded_tool_has_an_example() -> None:
    recorded = {name for name, spec in specs().items() if spec.place == "worker" and spec.recorded}

    assert {tool for tool, _ in EXAMPLES.values()} == recorded


def test_the_last_layer_says_what_transformers_says(lab: Laboratory, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nnterp_mcp.model.text.tokens import token_text

    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = plain(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1]
    best = logits.softmax(0).topk(3)

    (reading,) = lab.logit_lens(prompts="The capital of France is").readings

    found = reading.layers[-1].top
    assert [token for token, _ in found] == [token_text(tokenizer, int(token)) for token in best.indices]
    assert [p for _, p in found] == pytest.approx(best.values.tolist(), rel=1e-5)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_laboratory_says_what_the_server_says(name: str, lab: Laboratory, recorded: Recorded) -> None:
    tool, arguments = EXAMPLES[name]

    result = getattr(lab, tool)(**arguments)

    said = [line for line in recorded.texts[name].splitlines() if not line.startswith(("run_id: ", "Parts for "))]
    assert [line for line in lab.show(result).splitlines() if "replaces a vector" not in line] == said
    arrays = recorded.store.read(recorded.ids[name]).arrays
    assert {array: list(kept.shape) for array, kept in lab.arrays.items()} == {
        array: card.shape for array, card in arrays.items()
    }


def test_tools_that_record_nothing_are_there_too(lab: Laboratory) -> None:
    assert [prompt.text for prompt in lab.tokenize(prompts="a b").prompts] == ["a b"]
    assert "llama" in lab.show(lab.inspect_model())
    assert {"tokenize", "inspect_model", "steer", "show"} <= set(dir(lab))
    assert not {"load_model", "session", "read_run"} & set(dir(lab))


def test_what_a_laboratory_does_not_have(lab: Laboratory) -> None:
    with pytest.raises(AttributeError, match="a laboratory has no 'session'; its tools are attention_probs, "):
        _ = lab.session
    with pytest.raises(InvalidRequest, match="a laboratory has no tool 'load_model': it has attention_probs, "):
        lab.call("load_model", model="x")
    with pytest.raises(InvalidRequest, match="logit_lens has no argument 'prompt': its arguments are model, prompts"):
        lab.logit_lens(prompt="a")


def test_arguments_may_be_given_by_position(lab: Laboratory) -> None:
    by_name = lab.steer(prompts="a b", vector={"positive": " a", "negative": " b"}, layers=1, factors=[0, 1])

    assert lab.steer("a b", {"positive": " a", "negative": " b"}, 1, [0, 1]) == by_name
    assert lab.inspect_model("layers[1]").path == "model.layers.1"
    with pytest.raises(TypeError, match="tokenize takes 1 arguments by position, not 2"):
        lab.tokenize("a", True)  # pyright: ignore
    with pytest.raises(TypeError, match="tokenize got two values for 'prompts'"):
        lab.tokenize("a", prompts="b")  # pyright: ignore


def test_a_model_in_memory_is_worked_on_as_it_is(lab: Laboratory, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nnterp_mcp import Laboratory, StandardizedTransformer

    plain = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = Laboratory(plain, tokenizer)
    wrapped = Laboratory(StandardizedTransformer(plain, tokenizer=tokenizer), handle="mine")

    expected = lab.logit_lens("a b c").readings
    assert own.logit_lens("a b c").readings == wrapped.logit_lens("a b c").readings == expected
    assert own.bench.model.module is plain
    assert wrapped.card.handle == "mine"
    assert own.card.num_layers == lab.card.num_layers
    with pytest.raises(InvalidRequest, match="dtype is for a model that is read from files: this one is in memory"):
        Laboratory(plain, tokenizer, dtype="float16")


def test_a_notebook_shows_results_and_figures(lab: Laboratory, tmp_path: Path) -> None:
    result = lab.logit_lens("a <b>")
    figure = lab.figure(result)
    figure.save(tmp_path / "lens.png")
    figure.save(str(tmp_path / "lens.html"))

    said = result._repr_html_() or ""
    assert re.sub("<[^>]+>", "", said.split("\n")[0]) == html.escape(lab.show(result).split("\n")[0])
    assert said.count("<tr>") == 1 + len(result.readings[0].layers)
    assert repr(result).startswith("LogitLensResult(remarks=<list of ")
    assert len(repr(result)) < 300
    assert type(result).model_validate(result.model_dump())._repr_html_() is None
    assert figure._repr_png_() == (tmp_path / "lens.png").read_bytes()
    assert (tmp_path / "lens.html").read_text().startswith("<!DOCTYPE html>")
    assert repr(figure).startswith("<Picture: ")
    with pytest.raises(InvalidRequest, match=r"written as \.png or \.html, not as '\.pdf'"):
        figure.save("lens.pdf")


def test_progress_is_told(folder: Path) -> None:
    from nnterp_mcp import Laboratory

    said: list[str] = []

    Laboratory(str(folder), on_progress=lambda progress: said.append(progress.message)).logit_lens(prompts=["a", "b"])

    assert "checking the model" in said
    assert "2 of 2 prompts" in said


def test_files_are_read_from_anywhere_unless_the_settings_name_folders(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnterp_mcp import Laboratory

    (tmp_path / "inside").mkdir()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"a"\n"b c"\n')
    asked: dict[str, Any] = {"prompts": {"path": str(prompts)}}
    monkeypatch.chdir(tmp_path)

    free = Laboratory(str(folder))
    assert len(free.run_prompts(**asked).rows) == 2
    assert len(free.run_prompts(prompts={"path": "prompts.jsonl"}).rows) == 2

    confined = Laboratory(str(folder), settings=Settings(folders=(folder, tmp_path / "inside")))
    with pytest.raises(Forbidden):
        confined.run_prompts(**asked)
    with pytest.raises(Forbidden):
        Laboratory(str(folder), settings=Settings(folders=(tmp_path / "inside",)))


def test_models_are_found_beside_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnterp_mcp import Laboratory

    monkeypatch.chdir(folder.parent)

    lab = Laboratory(folder.name)

    assert lab.card.source == str(folder.resolve())
    assert repr(lab) == f"Laboratory({folder.name!r})"


def test_loading_takes_what_load_model_takes(folder: Path) -> None:
    from nnterp_mcp import Laboratory

    assert Laboratory(str(folder), dtype="bfloat16", handle="half").card.dtype == "bfloat16"
    with pytest.raises(InvalidRequest, match="load_model has no argument 'precision'"):
        Laboratory(str(folder), precision="float32")
    with pytest.raises(UnknownModel):
        Laboratory("/nowhere")


def test_a_laboratory_draws_what_a_server_draws(lab: Laboratory, recorded: Recorded) -> None:
    from nnterp_mcp.display.png import draw_png
    from nnterp_mcp.runs.figures import figure_of

    for name in ("lens", "attention"):
        tool, arguments = EXAMPLES[name]
        drawn = lab.figure(lab.call(tool, **arguments))
        served = figure_of(recorded.store, recorded.store.read(recorded.ids[name]), specs())
        assert [panel.title for panel in drawn.panels] == [panel.title for panel in served.panels]
        assert draw_png(drawn) == draw_png(served)
    with pytest.raises(NnterpError, match="tokenize draws no figure"):
        lab.figure(lab.call("tokenize", prompts="a"))


def test_a_result_says_how_its_input_was_read(lab: Laboratory) -> None:
    result = lab.run_prompts(prompts=["<bos>The capital", "a"], targets={"one": {"id": 5}, "blank": "\t"})

    assert result.remarks[1] == "A prompt begins with <bos> already: it was not put before the text again."
    assert result.remarks[0].startswith('Tokens counted: "one" #5 ')
    assert all(remark in lab.show(result) for remark in result.remarks)
