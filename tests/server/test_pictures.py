"""Pictures as a client gets them: beside an answer, of a run that is read later, and as resources."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from mcp_types import CallToolResult, ImageContent
from PIL import Image

from nnterp_mcp.runs.store import RunStore
from tests.serving import Caller, stdio, until

PROMPT = "The capital of France is"
TARGETS = {"capital": "Paris"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def client(tiny: Callable[..., Path], data: Path) -> Generator[Caller]:
    with stdio(data=data) as caller:
        assert not caller.call("load_model", model=str(tiny("llama"))).is_error
        yield caller


def picture(result: CallToolResult) -> bytes:
    said, image = result.content
    assert isinstance(image, ImageContent)
    assert image.mime_type == "image/png"
    content = base64.b64decode(image.data)
    assert Image.open(io.BytesIO(content)).format == "PNG"
    assert f"run://{result.structured_content['run_id']}/figure.html" in said.text
    assert any("figure.png" in note for note in result.structured_content["notes"])
    return content


def said(result: CallToolResult) -> str:
    return result.content[0].text


def test_plot_adds_a_picture_and_changes_no_number(client: Caller, data: Path) -> None:
    plain = client.call("logit_lens", prompts=PROMPT, targets=TARGETS)
    drawn = client.call("logit_lens", prompts=PROMPT, targets=TARGETS, plot=True)
    run_id = drawn.structured_content["run_id"]

    assert len(plain.content) == 1
    assert picture(drawn) == (data / "runs" / run_id / "figure.png").read_bytes()
    assert drawn.structured_content["table"] == plain.structured_content["table"]
    assert "picture" not in drawn.structured_content
    assert "plot" not in RunStore(data / "runs").read(run_id).params


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("patchscope", {"source_prompts": PROMPT, "target_layers": "all"}),
        ("attention_probs", {"prompts": PROMPT, "query_positions": "last"}),
        (
            "patch_activations",
            {
                "clean": PROMPT,
                "corrupted": {"noise": 3.0, "positions": {"text": "France"}},
                "targets": {"answer": "Paris", "wrong": "Rome"},
                "control": True,
            },
        ),
        (
            "steer",
            {
                "prompts": PROMPT,
                "vector": {"positive": " love", "negative": " hate"},
                "layers": "all",
                "factors": [-2, 2],
                "targets": TARGETS,
                "control": True,
            },
        ),
        ("train_probe", {"prompts": {"a": ["Rome is", "Paris", "Oslo"], "b": ["one two", "six", "two"]}}),
        ("attribute", {"prompts": PROMPT, "targets": TARGETS, "method": "gradient"}),
        ("run_prompts", {"prompts": [PROMPT, "Two and"], "targets": TARGETS}),
        ("collect_activations", {"prompts": {"a": ["Rome is", "Paris"], "b": ["one", "two"]}}),
    ],
)
def test_every_tool_that_draws_answers_with_a_picture(tool: str, arguments: dict[str, Any], client: Caller) -> None:
    result = client.call(tool, **arguments, plot=True)

    assert not result.is_error, said(result)
    picture(result)


def test_a_finished_run_gives_its_picture_and_page(client: Caller) -> None:
    run_id = client.call("logit_lens", prompts=PROMPT).structured_content["run_id"]
    read = client.call("read_run", run_id=run_id, format="picture")
    (image,) = client.read(f"run://{run_id}/figure.png").contents
    (page,) = client.read(f"run://{run_id}/figure.html").contents

    assert said(read).startswith("After")
    assert base64.b64decode(image.blob) == picture(read)
    assert image.mime_type == "image/png"
    assert page.mime_type == "text/html"
    assert page.text.startswith("<!DOCTYPE html>")
    assert "The capital of France is" in page.text
    assert len(page.text) < 200_000
    assert "src=" not in page.text


@pytest.mark.slow
def test_a_late_run_gives_its_picture_when_it_is_read(tiny: Callable[..., Path]) -> None:
    with stdio(reply_within=0.1, batch_tokens=1) as caller:
        until(lambda: "still loading" not in said(caller.call("load_model", model=str(tiny("llama")))))
        late = caller.call("logit_lens", prompts=[f"a b {number}" for number in range(150)], plot=True)
        run_id = late.structured_content["run_id"]
        read = until(
            lambda: "waits for" not in said(found := caller.call("read_run", run_id=run_id, format="picture")) and found
        )

    assert late.structured_content["state"] == "running"
    assert "format='picture' adds the picture." in late.structured_content["notes"]
    picture(read)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"name": "chance", "method": "random", "norm": 1.0}, "a picture shows directions by layer"),
        ({}, "a picture shows a whole run, not part='readings'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(arguments: dict[str, Any], why: str, client: Caller) -> None:
    if arguments:
        run_id = client.call("make_vector", **arguments).structured_content["run_id"]
        refused = client.call("read_run", run_id=run_id, format="picture")
    else:
        run_id = client.call("logit_lens", prompts=PROMPT).structured_content["run_id"]
        refused = client.call("read_run", run_id=run_id, part="readings", format="picture")

    assert refused.is_error
    assert why in said(refused)


def test_an_answer_is_not_lost_with_its_picture(client: Caller) -> None:
    result = client.call("run_prompts", prompts=PROMPT, plot=True)

    assert not result.is_error
    assert len(result.content) == 1
    assert "1 prompt run on tiny-llama" in said(result)
    assert "No picture: run_prompts draws targets, and this call followed none. Give targets." in said(result)


def test_an_unexpected_fault_while_drawing_costs_the_picture_only(client: Caller, data: Path) -> None:
    """A result that lost its lists between writing and drawing: what is left of the run is still read."""
    from hashlib import sha256

    run_id = client.call("logit_lens", prompts=PROMPT).structured_content["run_id"]
    store = RunStore(data / "runs")
    record = store.read(run_id)
    empty = b'{"readings": [], ' + store.read_result(record).split(b'"readings":')[0].lstrip(b"{").rstrip(b",") + b"}"
    store.write_result(run_id, empty)
    store.write(record.model_copy(update={"result_sha256": sha256(empty).hexdigest()}))

    refused = client.call("read_run", run_id=run_id, format="picture")

    assert refused.is_error
    assert said(refused).startswith("internal: ")
    assert not client.call("read_run", run_id=run_id, part="record").is_error
    assert not client.call("session").is_error
