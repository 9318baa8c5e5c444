"""Every answer lists the parts of its run, and each part that it points to has what the answer leaves out."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.serving import Caller, text

pytestmark = pytest.mark.smollm2

PROMPT = "The capital of France is"
MANY = [f"The capital of {name} is" for name in ("France", "Italy", "Spain", "Japan", "Peru", "Egypt", "Chile")]
TARGETS = {"capital": "Paris", "traps": ["London", "Madrid"]}
PAIR = {"clean": PROMPT, "corrupted": "The capital of Italy is", "targets": {"answer": "Paris", "wrong": "Rome"}}
GROUPS = {"positive": [f"I love {name}" for name in "abcdef"], "negative": [f"I hate {name}" for name in "abcdef"]}
LOVE = {"positive": " love", "negative": " hate"}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "lens": ("logit_lens", {"prompts": PROMPT, "targets": TARGETS}),
    "lens of many": ("logit_lens", {"prompts": MANY * 9, "layers": [10, -1]}),
    "prompts": ("run_prompts", {"prompts": MANY, "targets": {"capital": "Paris"}}),
    "prompts by layer": ("run_prompts", {"prompts": MANY, "targets": TARGETS, "readout": "logit_lens"}),
    "steer": ("steer", {"prompts": PROMPT, "vector": LOVE, "layers": "all", "factors": [2, 8], "targets": TARGETS}),
    "steer to text": (
        "steer",
        {"prompts": PROMPT, "vector": LOVE, "layers": "::3", "factors": [2, 8], "max_new_tokens": 3},
    ),
    "patchscope": ("patchscope", {"source_prompts": PROMPT}),
    "patchscope of many": ("patchscope", {"source_prompts": MANY, "source_positions": "all", "source_layers": [5, 9]}),
    "generate": ("generate", {"prompts": MANY * 4, "max_new_tokens": 2}),
    "score": ("generate", {"prompts": MANY, "max_new_tokens": 0, "logprobs": True}),
    "attention": ("attention_probs", {"prompts": PROMPT}),
    "what tokens read": ("attention_probs", {"prompts": PROMPT, "query_positions": "last", "layers": "10:"}),
    "patch": ("patch_activations", {**PAIR, "layers": "::2"}),
    "attribute": ("attribute", {"prompts": PROMPT, "targets": {"answer": "Paris"}, "by": "head"}),
    "collect": ("collect_activations", {"prompts": GROUPS}),
    "vector": ("make_vector", {"name": "mood", "method": "mean_difference", **GROUPS}),
    "probe": ("train_probe", {"prompts": GROUPS, "folds": 3, "shuffles": 2}),
    "saved probe": ("train_probe", {"probe": "mood", "prompts": GROUPS}),
}
_POINTER = re.compile(r"(\d+) (?:more )?([a-z ]+?)s?(?: of text)? not shown: read_run part=([\w.]*\w)")
_PART = re.compile(r"([\w.]+) \((\d+) rows?: ([^()]+)\)")


def read(warm: Caller, run_id: str, part: str, **arguments: Any) -> dict[str, Any]:
    found = warm.call("read_run", run_id=run_id, part=part, **arguments)
    assert not found.is_error, text(found)
    assert found.structured_content is not None
    return found.structured_content


@pytest.mark.parametrize("kind", CALLS)
def test_what_an_answer_leaves_out_is_in_the_part_that_it_names(kind: str, warm: Caller) -> None:
    tool, arguments = CALLS[kind]
    if "probe" in arguments:
        assert not warm.call("make_vector", **CALLS["vector"][1]).is_error
    result = warm.call(tool, **arguments)
    answer: Any = result.structured_content
    assert not result.is_error, text(result)

    for count, noun, part in _POINTER.findall(" ".join(answer["notes"])):
        whole = read(warm, answer["run_id"], part, limit=500, format="json")
        names = whole["table"]["columns"]
        if noun.endswith("layer"):
            column = next(name for name in names if name.rsplit(".", 1)[-1] in ("layer", "source_layer"))
            layers = {row[names.index(column)] for row in whole["table"]["rows"]}
            assert len(layers) >= int(count), f"{part} has {len(layers)} layers"
        elif noun not in ("character", "token"):
            assert whole["total"] >= int(count)


@pytest.mark.parametrize("kind", ["lens", "prompts", "steer", "patch", "collect"])
def test_the_parts_that_an_answer_lists_have_the_columns_that_it_lists(kind: str, warm: Caller) -> None:
    tool, arguments = CALLS[kind]
    answer: Any = warm.call(tool, **arguments).structured_content
    (listed,) = [note for note in answer["notes"] if note.startswith("Parts for read_run: ")]
    parts = _PART.findall(listed)

    assert parts
    for name, count, columns in parts:
        page = read(warm, answer["run_id"], name, limit=2, format="json")
        assert page["total"] == int(count)
        assert set(columns.split(", ")) - set(page["table"]["columns"]) <= {f"those of {name.rpartition('.')[0]}"}
        for column in page["table"]["columns"]:
            value = page["table"]["rows"][0][page["table"]["columns"].index(column)]
            if isinstance(value, str | int) and value != "":
                assert read(warm, answer["run_id"], name, where={column: value})["total"] >= 1
    read(warm, answer["run_id"], "result")
    read(warm, answer["run_id"], "record")


def test_every_layer_has_a_number_where_the_table_shows_only_some(warm: Caller) -> None:
    whole: Any = warm.call("logit_lens", prompts=PROMPT, targets=TARGETS).structured_content
    ((name, numbers),) = whole["by_layer"].items()
    rows = read(warm, whole["run_id"], "readings.layers", limit=30, format="json")["table"]

    assert name == "capital p, layers 0 to 29"
    expected = [row[rows["columns"].index("targets")][0][0] for row in rows["rows"]]
    assert numbers == pytest.approx(expected, abs=5.1e-3)
