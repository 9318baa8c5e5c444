"""Named prompt sets: saved once, taken by every tool that takes prompts, and recorded with their prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.request.named_sets import NamedSet, SetItem, sets_from
from nnterp_mcp.runs.prompt_sets import PromptSetStore
from nnterp_mcp.toolset import specs
from tests.serving import Caller, text

CAPITALS = {"The capital of France is": "Paris", "The capital of Italy is": "Rome"}
ITEMS = {
    "clean": [{"prompt": prompt, "targets": {"answer": city}} for prompt, city in CAPITALS.items()],
    "corrupted": [{"prompt": prompt, "targets": {"answer": "Madrid"}} for prompt in ("It is", "We see")],
}
NAMED = NamedSet.model_validate(
    {
        "name": "pairs",
        "made": "2026-01-01T00:00:00+00:00",
        "groups": {
            name: [{**item, "targets": {"answer": [item["targets"]["answer"]]}} for item in items]
            for name, items in ITEMS.items()
        },
    }
)
CLEAN, OTHER = list(CAPITALS), ["It is", "We see"]
WHOLE, FIRST, SECOND = {"set": "pairs"}, {"set": "pairs", "group": "clean"}, {"set": "pairs", "group": "corrupted"}
OWN = [{"answer": city} for city in CAPITALS.values()]
CALLS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "prompts": ("generate", {"prompts": WHOLE}, {"prompts": [*CLEAN, *OTHER]}),
    "as text": ("tokenize", {"prompts": '{"set": "pairs", "group": "clean"}'}, {"prompts": CLEAN}),
    "no reference": ("generate", {"prompts": ['{"set": "pairs"}']}, {"prompts": ['{"set": "pairs"}']}),
    "groups": ("collect_activations", {"prompts": WHOLE}, {"prompts": {"clean": CLEAN, "corrupted": OTHER}}),
    "a group called set": ("collect_activations", {"prompts": {"set": ["pairs"]}}, {"prompts": {"set": ["pairs"]}}),
    "classes": ("train_probe", {"prompts": WHOLE}, {"prompts": {"clean": CLEAN, "corrupted": OTHER}}),
    "targets of each": ("run_prompts", {"prompts": FIRST}, {"prompts": CLEAN, "targets": OWN}),
    "other targets": (
        "run_prompts",
        {"prompts": FIRST, "targets": {"verb": "is"}},
        {"prompts": CLEAN, "targets": {"verb": "is"}},
    ),
    "pairs": (
        "patch_activations",
        {"clean": FIRST, "corrupted": SECOND},
        {"clean": CLEAN, "corrupted": OTHER, "targets": OWN},
    ),
    "attributed": ("attribute", {"prompts": FIRST}, {"prompts": CLEAN, "targets": OWN}),
    "targets of all": ("logit_lens", {"prompts": SECOND}, {"prompts": OTHER, "targets": {"answer": "Madrid"}}),
    "targets that differ": ("logit_lens", {"prompts": FIRST}, {"prompts": CLEAN}),
    "source prompts": ("patchscope", {"source_prompts": FIRST}, {"source_prompts": CLEAN}),
    "attention": ("attention_probs", {"prompts": FIRST}, {"prompts": CLEAN}),
    "a vector of groups": (
        "make_vector",
        {"name": "v", "method": "mean_difference", "prompts": WHOLE},
        {"name": "v", "method": "mean_difference", "positive": CLEAN, "negative": OTHER},
    ),
    "sides": (
        "make_vector",
        {"name": "v", "method": "mean_difference", "positive": SECOND, "negative": FIRST},
        {"name": "v", "method": "mean_difference", "positive": OTHER, "negative": CLEAN},
    ),
    "a direction": (
        "steer",
        {"prompts": "x", "layers": 1, "factors": 1, "vector": WHOLE},
        {"prompts": "x", "layers": 1, "factors": 1, "vector": {"formal": CLEAN, "casual": OTHER}},
    ),
    "averaged": (
        "generate",
        {"prompts": "x", "interventions": [{"op": "mean", "site": "mlps_output", "layers": 1, "over": WHOLE}]},
        {
            "prompts": "x",
            "interventions": [{"op": "mean", "site": "mlps_output", "layers": 1, "over": [*CLEAN, *OTHER]}],
        },
    ),
    "patched from": (
        "generate",
        {"prompts": "x", "interventions": [{"op": "patch", "layers": 1, "from": {"prompt": {"set": "one"}}}]},
        {"prompts": "x", "interventions": [{"op": "patch", "layers": 1, "from": {"prompt": "alone"}}]},
    ),
}


def find(name: str) -> NamedSet:
    return NAMED if name == "pairs" else NAMED.model_copy(update={"groups": {"prompts": [SetItem(prompt="alone")]}})


@pytest.mark.parametrize("case", CALLS)
def test_a_set_stands_for_its_prompts(case: str) -> None:
    tool, named, written = CALLS[case]
    with sets_from(find):
        parsed = specs()[tool].parse(named)

    assert parsed == specs()[tool].parse(written)
    assert specs()[tool].parse(parsed.model_dump(mode="json")) == parsed


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        (
            "generate",
            {"prompts": {"set": "pairs", "group": "dirty"}},
            "the set 'pairs' has no group 'dirty': it has 'cl",
        ),
        ("session", {"save_set": "x"}, "save_set and prompts go together"),
        ("session", {"save_set": "a/b", "prompts": "x"}, "a name has 1 to 64 letters"),
        ("session", {"save_set": "x", "prompts": "x", "delete_set": "y"}, "saves a prompt set or deletes one"),
        (
            "session",
            {"save_set": "x", "prompts": ["a", {"prompt": "b", "targets": {"c": "d"}}]},
            "prompt 1 has the tar",
        ),
        ("session", {"save_set": "x", "prompts": {"a": []}}, "prompts is empty"),
    ],
)
def test_refusals(tool: str, arguments: dict[str, Any], message: str) -> None:
    with sets_from(find), pytest.raises(InvalidRequest, match=message):
        specs()[tool].parse(arguments)


def test_without_a_store_a_set_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="the prompt set 'pairs' cannot be looked up here: give its prompts"):
        specs()["generate"].parse({"prompts": WHOLE})


def test_the_store(tmp_path: Path) -> None:
    store = PromptSetStore(tmp_path / "sets")
    with pytest.raises(InvalidRequest, match="there is no prompt set 'pairs': there are none"):
        store.find("pairs")
    assert [store.save(NAMED), store.save(NAMED)] == [False, True]
    assert store.find("pairs") == NAMED
    with pytest.raises(InvalidRequest, match="'Pairs' differs only in capitals from the set 'pairs'"):
        store.save(NAMED.model_copy(update={"name": "Pairs"}))
    with pytest.raises(InvalidRequest, match="there is no prompt set 'other': the sets are pairs"):
        store.delete("other")
    with pytest.raises(InvalidRequest, match="a name has 1 to 64"):
        store.find("../pairs")
    (tmp_path / "sets" / "broken.json").write_text("{")
    assert store.sets() == [NAMED]
    with pytest.raises(InvalidRequest, match="'broken' is damaged"):
        store.find("broken")
    store.delete("pairs")
    assert store.sets() == []


@pytest.mark.smollm2
def test_a_set_is_saved_used_recorded_and_deleted(warm: Caller) -> None:
    saved = warm.call("session", save_set="capitals", prompts=ITEMS["clean"])
    assert not saved.is_error, text(saved)
    assert 'The prompt set capitals is saved: give {"set": "capitals"} where prompts go.' in text(saved)
    rows = warm.call("session").structured_content["prompt_sets"]["rows"]
    assert [row[:4] for row in rows] == [["capitals", 2, "none", "answer"]]

    named = warm.call("run_prompts", prompts={"set": "capitals"}).structured_content
    written = warm.call("run_prompts", prompts=CLEAN, targets=OWN).structured_content
    assert named["categories"] == written["categories"]

    gone = warm.call("session", delete_set="capitals")
    assert "The prompt set capitals is deleted." in text(gone)
    record = warm.call("read_run", run_id=named["run_id"], part="record", format="json")
    assert CLEAN[0] in text(record)
    refused = warm.call("run_prompts", prompts={"set": "capitals"})
    assert "there is no prompt set 'capitals'" in text(refused)
