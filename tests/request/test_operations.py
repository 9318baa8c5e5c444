"""The language of interventions: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.contract import Answer, ModelParams, Result, ToolSpec
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.request.operations import (
    OPERATIONS,
    DescribedInterventions,
    Interventions,
    Patch,
    Skip,
    describe,
    parse_operation,
)
from nnterp_mcp.request.sites import SITES


class Asked(ModelParams):
    interventions: Interventions = ()


def digest(result: Result) -> Answer:
    return Answer(finding="")


SPEC = ToolSpec(name="asked", title="", description="", examples=[], params=Asked, digest=digest)
EXAMPLES: list[dict[str, Any]] = [
    {"op": "add", "layers": 12, "vector": {"positive": " love", "negative": " hate"}, "factor": 8},
    {"op": "add", "site": "token_embeddings", "vector": [0.5, -1], "positions": ["last", {"text": "a"}]},
    {"op": "add", "layers": "4:20", "vector": "mood", "steps": "1:"},
    {"op": "scale", "layers": [1, -1], "site": "mlps_output", "factor": 0, "neurons": [5, 7]},
    {"op": "zero", "layers": 3, "heads": "all", "prompts": [0, 2]},
    {"op": "mean", "layers": 3, "heads": 2, "over": ["one", "two"], "over_positions": "1:"},
    {"op": "patch", "layers": 3, "from": {"prompt": 0, "position": "last", "layer": 4}},
    {"op": "patch", "layers": 3, "from": {"prompt": [{"role": "user", "content": "hi"}]}},
    {"op": "project_out", "layers": "all", "vector": "refusal"},
    {"op": "swap", "layers": "all", "vector": "france", "other": "china", "factor": 2},
    {"op": "project_out", "layers": 3, "positions": "last", "vector": "refusal", "over": ["Rome is", "Paris is"]},
    {"op": "skip", "layers": [3, 4]},
    {"op": "knockout", "layers": 3, "heads": [0], "query_positions": "last", "key_positions": 2, "renormalise": False},
    {"op": "set_attention", "layers": 3, "pattern": "previous"},
    {"op": "set_attention", "layers": 3, "pattern": [[1, 0], [0.5, 0.5]]},
]
REFUSED: list[Any] = [
    3,
    "skip",
    [3],
    [{}],
    [{"op": "erase"}],
    [{"op": "skip"}],
    [{"op": "skip", "layers": "four"}],
    [{"op": "skip", "layers": 1, "site": "queries"}],
    [{"op": "skip", "layers": 1, "steps": -1}],
    [{"op": "zero", "layers": 1}],
    [{"op": "zero", "layers": 1, "site": "neuron"}],
    [{"op": "zero", "layers": 1, "site": "layers_output", "heads": 0}],
    [{"op": "zero", "layers": 1, "site": "token_embeddings"}],
    [{"op": "zero", "layers": 1, "site": "attention_probabilities", "neurons": 3}],
    [{"op": "zero", "layers": 1, "heads": 0.5}],
    [{"op": "zero", "layers": 1, "heads": 0, "positions": "first"}],
    [{"op": "mean", "layers": 1, "site": "attention_probabilities"}],
    [{"op": "scale", "layers": 1, "heads": 0}],
    [{"op": "scale", "layers": 1, "heads": 0, "factor": "much"}],
    [{"op": "add", "layers": 1, "vector": {"positive": ""}, "factor": 2}],
    [{"op": "add", "layers": 1, "vector": []}],
    [{"op": "add", "layers": 1, "vector": "mood", "strength": 2}],
    [{"op": "patch", "layers": 1}],
    [{"op": "patch", "layers": 1, "from": 3}],
    [{"op": "patch", "layers": 1, "from": {"prompt": ["a", "b"], "token": 2}}],
    [{"op": "set_attention", "layers": 1, "pattern": "diagonal"}],
    [{"op": "skip", "layers": 1}, {"op": "skip"}],
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example['op']}-{len(example)}")
def test_operations_survive_the_way_to_the_worker(example: dict[str, Any]) -> None:
    params = SPEC.parse({"interventions": [example]})
    assert Asked.model_validate(json.loads(json.dumps(params.model_dump(mode="json")))) == params
    assert SPEC.parse({"interventions": json.dumps([example])}) == params
    assert SPEC.parse({"interventions": example}) == params


def test_refusals_say_what_came_and_what_is_allowed(snapshot: SnapshotAssertion) -> None:
    said: list[str] = []
    for value in REFUSED:
        with pytest.raises(InvalidRequest) as error:
            SPEC.parse({"interventions": value})
        said.append(error.value.message)
    assert said == snapshot


def test_operations_have_short_names(snapshot: SnapshotAssertion) -> None:
    assert [describe(parse_operation(example)) for example in EXAMPLES] == snapshot


def test_the_schema_is_small_and_names_every_op_and_site() -> None:
    schema = json.dumps(TypeAdapter(DescribedInterventions).json_schema(), ensure_ascii=False)
    assert len(schema) < 870
    assert all(op in schema for op in OPERATIONS)
    assert all(site in schema or site.removesuffix("output") in schema for site in SITES)


def test_the_library_builds_the_same_operations() -> None:
    assert Skip(layers=3) == parse_operation({"op": "skip", "layers": 3})
    assert parse_operation({"op": "patch", "layers": 3, "from": {}}) == Patch.model_validate(
        {"layers": 3, "source": {}}
    )
    with pytest.raises(ValueError, match="skip needs layers"):
        Skip()


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["all", "last", "1:"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
fields = st.sampled_from(sorted({name for op in OPERATIONS.values() for name in op.model_fields} | {"from", "x"}))
near = st.builds(
    lambda op, extra: {"op": op, "layers": 1} | extra, st.sampled_from([*OPERATIONS]), st.dictionaries(fields, values)
)


@given(values | near | st.lists(near | values, max_size=3))
def test_whatever_comes_is_taken_or_refused(value: Any) -> None:
    with suppress(InvalidRequest):
        SPEC.parse({"interventions": value})


@given(st.dictionaries(st.sampled_from(["prompt", "position", "layer", "run", "x"]), values))
def test_whatever_a_patch_comes_from_is_taken_or_refused(value: Any) -> None:
    with suppress(InvalidRequest):
        SPEC.parse({"interventions": [{"op": "patch", "layers": 1, "from": value}]})
