"""Runs as MCP resources, over a real client."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, ResourceTemplateReference

from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.server import skills
from nnterp_mcp.server.recipes import RECIPES
from nnterp_mcp.server.resources import LISTED, PIECE
from tests import recorded_runs as runs
from tests.recorded import EXAMPLES, Recorded
from tests.serving import http, stdio, until


def read(recorded: Recorded, address: str) -> Any:
    (content,) = recorded.caller.read(address).contents
    assert content.uri == address
    return content


def refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(MCPError) as raised:
        read()
    assert raised.value.error.code == INVALID_PARAMS
    assert set(raised.value.error.data) == {"uri"}
    return raised.value.error.message


def test_the_latest_runs_are_listed(recorded: Recorded) -> None:
    listed = recorded.caller.resources()
    entry = next(entry for entry in listed if entry.name == recorded.ids["lens"])
    opened = recorded.store.read(entry.name).opened

    assert {entry.name for entry in listed} == {
        "tools",
        "glossary",
        *map(skills.name, RECIPES.values()),
        *[*recorded.ids.values()][-LISTED:],
    }
    assert entry.uri == f"run://{entry.name}"
    assert entry.title == f"logit_lens on tiny-llama, done, {opened[:10]} {opened[11:16]}"
    assert entry.mime_type == "text/markdown"


def test_no_more_than_a_page_is_listed(tmp_path: Path) -> None:
    for _ in range(LISTED + 3):
        runs.done(RunStore(tmp_path))

    with stdio(runs=tmp_path) as caller:
        assert len([entry for entry in caller.resources() if entry.uri.startswith("run:")]) == LISTED


def test_templates_say_what_a_run_has(recorded: Recorded) -> None:
    assert {template.uri_template for template in recorded.caller.resource_templates()} == {
        "nnterp://tools/{tool}",
        "run://{run_id}",
        "run://{run_id}/record",
        "run://{run_id}/result",
        "run://{run_id}/figure.png",
        "run://{run_id}/figure.html",
        "run://{run_id}/{array}",
        "run://{run_id}/{part}/{piece}",
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_answer_is_what_the_call_said(name: str, recorded: Recorded) -> None:
    content = read(recorded, f"run://{recorded.ids[name]}")

    *said, _ = recorded.texts[name].splitlines()
    assert content.mime_type == "text/markdown"
    assert content.text.splitlines()[: len(said)] == said
    assert content.text.splitlines()[-1] == f"run_id: {recorded.ids[name]}"


def test_a_record_and_a_result_are_whole(recorded: Recorded) -> None:
    run_id = recorded.ids["attention"]
    record = recorded.store.read(run_id)

    assert json.loads(read(recorded, f"run://{run_id}/record").text) == record.model_dump(mode="json")
    assert read(recorded, f"run://{run_id}/result").text.encode() == recorded.store.read_result(record)


def test_an_array_is_a_safetensors_file(recorded: Recorded) -> None:
    from safetensors.numpy import load

    run_id = recorded.ids["patching"]
    (name, card), *_ = recorded.store.read(run_id).arrays.items()

    (kept,) = load(base64.b64decode(read(recorded, f"run://{run_id}/{name}").blob)).values()

    whole = recorded.store.read_array(run_id, name, tuple(slice(None) for _ in card.shape))
    assert kept.tolist() == whole.tolist()


def test_what_is_not_there_is_named(recorded: Recorded) -> None:
    run_id, caller = recorded.ids["patching"], recorded.caller

    assert refusal(lambda: caller.read("run://logit_lens-aaaaaa")) == (
        "invalid_request: there is no run 'logit_lens-aaaaaa': it never was, or was deleted to make room.\n"
        "session lists the latest runs."
    )
    assert "a run id looks like 'logit_lens-k3f7qa', so not '..'" in refusal(lambda: caller.read("run://../record"))
    assert f"{run_id} has no part 'pattern': its parts are record, result, " in refusal(
        lambda: caller.read(f"run://{run_id}/pattern")
    )
    assert refusal(lambda: caller.read("nnterp://tools/lens")).startswith(
        "invalid_request: there is no document 'nnterp://tools/lens': documents are nnterp://glossary, nnterp://tools, "
    )
    for address in ("file:///etc/passwd", "run://", f"run://{run_id}/a/b", f"run://{run_id}/record/0"):
        assert "there is no resource " in refusal(lambda address=address: caller.read(address))


def test_what_is_too_large_for_a_message_comes_in_pieces(tmp_path: Path) -> None:
    """Over HTTP, where the SDK's client refuses messages of more than 1 MiB."""
    import numpy as np

    store = RunStore(tmp_path)
    result = '{"a": "%s"}' % ('"\\\\😀é' * 200_000)
    record = runs.done(store, result.encode())
    card = store.write_array(record.id, "pattern", np.arange(3 * PIECE // 8, dtype=np.float32), {"place": []})
    store.write(record.model_copy(update={"arrays": {"pattern": card}}))
    whole = {"result": result.encode(), "pattern": store.array_path(record.id, "pattern").read_bytes()}

    with http(runs=tmp_path) as server, server.client() as caller:
        for part, expected in whole.items():
            address = f"run://{record.id}/{part}"
            said = refusal(lambda address=address: caller.read(address))
            count = int(re.findall(rf"Read its (\d+) pieces, {address}/1 to {address}/\1, and join them", said)[0])
            pieces = [caller.read(f"{address}/{number}").contents[0] for number in range(1, count + 1)]
            joined = [base64.b64decode(one.blob) if part == "pattern" else one.text.encode() for one in pieces]
            assert b"".join(joined) == expected
            assert "there is no" in refusal(lambda beyond=f"{address}/{count + 1}": caller.read(beyond))
        assert json.loads(caller.read(f"run://{record.id}/record").contents[0].text)["id"] == record.id


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    from nnterp_mcp.runs.records import RunError

    store = RunStore(tmp_path)
    error = RunError(code="out_of_memory", message="the call did not fit the memory", next_step="Use fewer prompts.")
    record = runs.opened(store)
    store.write(record.model_copy(update={"state": "failed", "error": error}))

    with stdio(runs=tmp_path) as caller:
        assert refusal(lambda: caller.read(f"run://{record.id}")) == (
            "out_of_memory: the call did not fit the memory\nUse fewer prompts."
        )


def test_a_run_under_way_is_not_waited_for(recorded: Recorded) -> None:
    caller = recorded.caller
    ending = caller.begin("generate", prompts=["Once upon"] * 8, max_new_tokens=240)
    found = until(lambda: [entry for entry in caller.resources() if "running" in (entry.title or "")])

    said = caller.read(found[0].uri).contents[0].text
    record = json.loads(caller.read(f"{found[0].uri}/record").contents[0].text)
    no_result = refusal(lambda: caller.read(f"{found[0].uri}/result"))

    assert not ending.done()
    assert re.match(r"generate on tiny-llama is (queued|running)", said)
    assert record["state"] == "running"
    assert no_result.startswith(f"invalid_request: {record['id']} has no result: it is running.")
    ending.cancel()
    until(lambda: recorded.store.read(record["id"]).state == "cancelled")
    recorded.store.delete(record["id"])


def test_the_documents_are_those_of_the_repository(recorded: Recorded) -> None:
    reference = read(recorded, "nnterp://tools")
    root = Path(__file__).parent.parent.parent

    assert reference.mime_type == "text/markdown"
    assert reference.text == (root / "docs" / "tools.md").read_text()
    assert read(recorded, "nnterp://tools/steer").text in reference.text
    assert read(recorded, "nnterp://glossary").text == (root / "nnterp_mcp" / "server" / "glossary.md").read_text()
    tool = ResourceTemplateReference(uri="nnterp://tools/{tool}")
    assert recorded.caller.complete(tool, "tool", "patch") == ["patch_activations", "patchscope"]


def test_the_glossary_explains_the_sites_and_the_words_of_the_answers(recorded: Recorded) -> None:
    from nnterp_mcp.request.sites import SITES

    glossary = read(recorded, "nnterp://glossary").text

    assert [site for site in SITES if site not in glossary] == []
    words = ("logit lens", "patchscope", "residual stream", "KL", "recovery", "entropy", "push", "run_id")
    assert [word for word in words if word not in glossary] == []


def test_ids_and_arrays_are_completed(recorded: Recorded) -> None:
    reference = ResourceTemplateReference(uri="run://{run_id}/{array}")
    run_id, caller = recorded.ids["patching"], recorded.caller

    assert caller.complete(reference, "run_id", "patch_") == [run_id]
    assert set(caller.complete(reference, "run_id", "steer-")) == {
        recorded.ids["steering"],
        recorded.ids["steering texts"],
    }
    assert caller.complete(reference, "run_id", "zebra") == []
    assert caller.complete(reference, "array", "", run_id=run_id) == sorted(recorded.store.read(run_id).arrays)
    assert caller.complete(reference, "array", "", run_id="../..") == []
