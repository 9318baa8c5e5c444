"""Whatever a client sends as arguments, it gets a result or an error that says what to change; nothing breaks.

`-s` prints how many inputs each tool got and what they came to; NNTERP_ANY_PARAMS raises the number for each tool.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, assume, given, settings

from nnterp_mcp.toolset import specs
from tests.dictionaries import DICTIONARY
from tests.limits.bed import PROMPT, Bed, made, rows

EXAMPLES = int(os.environ.get("NNTERP_ANY_PARAMS", "10"))
"""Inputs of each tool."""

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [
        *("", " ", "\0", "NaN", "Infinity", "-1", "1e999", "null", "true", "[]", "{}", "[[[", '{"a": [1', "0:3", "3:0"),
        *("::", "last", "all", "same", "repeat", "../../etc/passwd", "C:\\con", "\u202e\u200b", "e\u0301\ud7ff"),
        *("tiny-llama", "vector", "answer", "record", "readings", "%s%n{0}", "'; --", "<b>", "a " * 200),
        *("🦜" * 500, "x" * 100_000),
    ]
)
NUMBERS = st.integers(-5, 300) | st.sampled_from(
    [2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e-9, 1e308, -1e308, 5e-324, 1.5, 3.0]
)
DEEP = st.integers(20, 90).map(lambda depth: _nested(depth))
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(TEXTS, parts, max_size=3),
    max_leaves=8,
)
PAIR = {"clean": "The king of France", "corrupted": "The king of Spain", "targets": {"one": " a", "other": " b"}}
OPERATIONS: list[dict[str, Any]] = [
    {"op": "add", "layers": [1], "vector": "vector", "factor": 2.0, "site": "layers_output", "positions": "last"},
    {"op": "add", "layers": 0, "vector": {"positive": " a", "negative": " b"}, "factor": -1},
    {"op": "scale", "layers": "all", "factor": 0.5, "site": "mlps_output", "neurons": [0, 1]},
    {"op": "zero", "layers": [2], "heads": [1, -1], "site": "heads_output", "steps": 0},
    {"op": "mean", "layers": "0:2", "site": "attentions_output", "prompts": ["a b", "c d"], "over": "all"},
    {"op": "patch", "layers": [1], "positions": [2], "from": {"prompt": "one two", "position": 1, "layer": 1}},
    {"op": "project_out", "layers": [3], "vector": "vector"},
    {"op": "skip", "layers": "1:3"},
    {"op": "knockout", "layers": [1], "heads": [0], "query_positions": [3], "key_positions": [1]},
    {"op": "set_attention", "layers": [0], "heads": "all", "pattern": "uniform"},
]
MEAN_AND_SCALE: list[dict[str, Any]] = [
    {"op": "mean", "site": "keys", "layers": 1, "steps": [1, 2], "over": [0, 1], "over_positions": "1:"},
    {"op": "scale", "site": "keys", "layers": 1, "factor": 0.5, "prompts": "all"},
]
MORE: dict[str, list[dict[str, Any]]] = {
    "edit_model": [{"interventions": OPERATIONS[:1]}, {"interventions": []}],
    "generate": [{"prompts": ["a b c", "d e f g h"], "max_new_tokens": 3, "interventions": MEAN_AND_SCALE}],
    "patch_activations": [PAIR],
    "patchscope": [{"source_vectors": "vector", "max_new_tokens": 2}],
    "steer": [{"prompts": PROMPT, "vector": "vector", "layers": [1], "factors": [1, 2]}],
}
"""Calls that the examples have nothing like: of a vector that there is, and of operations on rows that differ."""

NAMES = sorted({name for operation in OPERATIONS for name in operation} | {"renormalise", "of", "seed"})


def _nested(depth: int) -> Any:
    return [] if depth == 0 else [_nested(depth - 1)] if depth % 2 else {"a": _nested(depth - 1)}


def valid(tool: str, run_id: str, folder: str) -> list[dict[str, Any]]:
    """Arguments that a tool takes."""
    given = {"run_id": run_id, "dictionary": "dictionary"}
    given |= {"load_model": {"model": folder}, "load_features": {"source": str(DICTIONARY)}}.get(tool, {})
    examples = [{name: given.get(name, value) for name, value in one.items()} for one in specs()[tool].examples]
    return examples + MORE.get(tool, [])


def values(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """What a schema asks for, and what lies at its edges."""
    if "anyOf" in schema:
        return st.one_of([values(part) for part in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds = schema.get("type", "object")
    edges = [schema[name] + step for name in ("minimum", "maximum") if name in schema for step in (-1, 0, 1)]
    strategies: dict[str, st.SearchStrategy[Any]] = {
        "string": TEXTS,
        "integer": st.sampled_from(edges) if edges else NUMBERS,
        "number": st.sampled_from(edges) | NUMBERS if edges else NUMBERS,
        "boolean": st.booleans(),
        "null": st.none(),
        "array": st.lists(TEXTS | NUMBERS, max_size=4) | st.lists(operations(), max_size=3),
        "object": st.dictionaries(TEXTS, TEXTS | st.lists(TEXTS, max_size=2), max_size=3),
    }
    return st.one_of([strategies[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)])


@st.composite
def operations(draw: st.DrawFn) -> dict[str, Any]:
    """An intervention, often with something wrong in it."""
    operation = dict(draw(st.sampled_from(OPERATIONS)))
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
        others = [other[name] for other in OPERATIONS if name in other]
        operation[name] = draw(st.sampled_from(others) | JSON if others else JSON)
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=1)):
        operation.pop(name, None)
    return operation


@st.composite
def arguments(draw: st.DrawFn, tool: str, known: list[dict[str, Any]]) -> dict[str, Any]:
    """Valid arguments of which some are changed, left out or made up."""
    properties: dict[str, Any] = specs()[tool].input_schema().get("properties", {})
    chosen = dict(draw(st.sampled_from(known)))
    names = sorted(properties)
    if "interventions" in names and draw(st.booleans()):
        chosen["interventions"] = draw(st.lists(operations(), min_size=1, max_size=3))
    for name in draw(st.lists(st.sampled_from(names), max_size=2, unique=True)) if names else ():
        chosen[name] = draw(values(properties[name]) | JSON | DEEP)
    for name in draw(st.lists(st.sampled_from(names), max_size=1)) if names and draw(st.integers(0, 4)) == 0 else ():
        chosen.pop(name, None)
    if draw(st.integers(0, 9)) == 0:
        chosen |= draw(st.dictionaries(TEXTS, JSON, max_size=1))
    return chosen


def may_unload(tool: str, chosen: Mapping[str, Any], folder: str) -> bool:
    """Whether a call may end the one model that there is."""
    return tool == "unload_model" and chosen.get("model") in (None, "tiny-llama", folder)


@pytest.fixture(scope="module")
def bed(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Generator[Bed]:
    with made(tiny("llama"), tmp_path_factory.mktemp("data")) as bed:
        yield bed
    print("", *rows(bed.tallies), sep="\n")


@pytest.mark.parametrize("tool", sorted(specs()))
def test_any_arguments_are_answered(tool: str, bed: Bed) -> None:
    bed.client.call("edit_model", interventions=[])  # what the fuzz of it left in force
    known = valid(tool, bed.run_id, bed.folder)
    expected = "no_model" if tool == "unload_model" else "ok"
    assert [bed.outcome(tool, one) for one in known] == [expected] * len(known)

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(arguments(tool, known))
    def every_input_is_answered(chosen: dict[str, Any]) -> None:
        assume(not may_unload(tool, chosen, bed.folder))
        bed.outcome(tool, chosen)
        assert not bed.tallies[tool].wrong, bed.client.log.read_text()[-3000:]

    every_input_is_answered()
    assert bed.holds_its_model()


@pytest.mark.parametrize("tool", sorted(specs()))
def test_limits_are_refused_fast_and_hold_up_nobody(tool: str, bed: Bed) -> None:
    from tests.limits.__main__ import try_limits

    tally = try_limits(bed, tool, every=61)

    assert not tally.wrong
    assert tally.slowest[0] < 2, tally.slowest
    assert tally.pause < 0.2
    assert bed.holds_its_model()
