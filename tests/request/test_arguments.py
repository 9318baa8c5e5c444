"""How clients send arguments: null for what is left out, 3.0 for 3, JSON as text, and more than any call needs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.toolset import specs
from tools.clients.calls import CALLS, CHAT, OPERATIONS

MIXED: list[tuple[str, dict[str, Any]]] = [
    ("tokenize", {"prompts": [CHAT, "a"]}),
    ("run_prompts", {"prompts": [{"prompt": "a", "targets": {"x": ["a"]}}, "b"]}),
    ("logit_lens", {"prompts": "a", "positions": [0, "last", {"text": "a", "occurrence": 1}]}),
]
EXAMPLES = [*CALLS, *MIXED]


@pytest.mark.parametrize(("tool", "arguments"), CALLS)
def test_every_call_fits_its_schema(tool: str, arguments: dict[str, Any]) -> None:
    jsonschema.validate(arguments, specs()[tool].input_schema())


@pytest.mark.parametrize(("tool", "arguments"), EXAMPLES)
def test_null_stands_for_what_is_left_out(tool: str, arguments: dict[str, Any]) -> None:
    spec = specs()[tool]
    nulls = dict.fromkeys(spec.params.model_fields) | arguments

    assert spec.parse(nulls) == spec.parse(arguments)


@pytest.mark.parametrize(
    "operation", [{"op": "skip", "layers": 1, "heads": None}, {"op": "zero", "site": "keys", "layers": 1}]
)
def test_null_stands_for_what_is_left_out_of_an_operation(operation: dict[str, Any]) -> None:
    nulls = dict.fromkeys(("prompts", "steps", "vector", "from", "pattern"))
    spec, kept = specs()["edit_model"], {name: value for name, value in operation.items() if value is not None}

    assert spec.parse({"interventions": [nulls | operation]}) == spec.parse({"interventions": [kept]})


def test_null_stands_for_what_is_left_out_of_parts() -> None:
    place = {"text": "a", "occurrence": None, "turn": None, "role": None, "part": None}
    source = {"prompt": None, "position": place, "layer": None, "run": None}
    message = {"role": "user", "content": "Hi", "name": None, "tool_calls": None}
    spec = specs()["generate"]

    parsed = spec.parse({"prompts": [message], "interventions": {"op": "patch", "layers": 1, "from": source}})

    bare = {"op": "patch", "layers": 1, "from": {"position": {"text": "a"}}}
    assert parsed == spec.parse({"prompts": [{"role": "user", "content": "Hi"}], "interventions": bare})


def floats(value: Any) -> Any:
    """The same with every integer as a float."""
    if isinstance(value, list):
        return [floats(part) for part in value]
    if isinstance(value, dict):
        return {name: floats(part) for name, part in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@pytest.mark.parametrize(("tool", "arguments"), EXAMPLES)
def test_a_whole_float_is_an_integer(tool: str, arguments: dict[str, Any]) -> None:
    spec = specs()[tool]
    parsed = spec.parse(floats(arguments))

    assert parsed == spec.parse(arguments)
    free = {"where"}  # values of any kind, which are compared and counted by nobody
    assert parsed.model_dump_json(exclude=free) == spec.parse(arguments).model_dump_json(exclude=free)  # 3, not 3.0


def test_a_whole_float_is_an_integer_in_a_range() -> None:
    parsed = specs()["logit_lens"].parse({"prompts": "a", "layers": "1.0:3.0", "positions": ["-2.0:", " 0.0 : 1 "]})

    assert (parsed.layers, parsed.positions) == ("1:3", ("-2:", " 0 : 1 "))
    with pytest.raises(InvalidRequest):
        specs()["logit_lens"].parse({"prompts": "a", "layers": "1.5:3"})


@pytest.mark.parametrize(("tool", "arguments"), EXAMPLES)
def test_lists_and_objects_may_come_as_json_text(tool: str, arguments: dict[str, Any]) -> None:
    spec = specs()[tool]
    texts = {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in arguments.items()}

    assert spec.parse(texts) == spec.parse(arguments)


def test_parts_of_operations_may_come_as_json_text() -> None:
    spec = specs()["edit_model"]
    texts = [
        {name: json.dumps(part) if isinstance(part, list | dict) else part for name, part in operation.items()}
        for operation in OPERATIONS
    ]

    assert spec.parse({"interventions": texts}) == spec.parse({"interventions": OPERATIONS})
    assert spec.parse({"interventions": [json.dumps(one) for one in texts]}) == spec.parse({"interventions": texts})


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ("logit_lens", '["a", "b"'),
        ("logit_lens", "[1, 2, 3]"),
        ("logit_lens", '["a", 1]'),
        ("logit_lens", '{"city": "Paris"}'),
        ("logit_lens", '"a"'),
        ("logit_lens", "[[1, 2], [3]]"),
        ("run_prompts", '{"city": "Paris"}'),
        ("collect_activations", '{"city": 1}'),
    ],
)
def test_a_text_that_holds_no_prompts_is_a_prompt(tool: str, text: str) -> None:
    prompts = specs()[tool].parse({"prompts": text}).model_dump()["prompts"]

    assert text in str(prompts) or repr(text)[1:-1] in str(prompts)
    assert len(prompts) == 1


def test_in_a_list_every_text_stands_for_itself() -> None:
    texts = ['["a", "b"]', json.dumps(CHAT)]

    assert specs()["logit_lens"].parse({"prompts": texts}).prompts == tuple(texts)
    assert specs()["patchscope"].parse({"source_prompts": "a", "target_prompt": '["a", "b"]'}).target_prompt == (
        '["a", "b"]'
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "prompts"),
        ('{"role": "user", "content": "Hi"}', "prompts"),
        ('[{"role": "user", "text": "Hi"}]', "message 0 of the chat has no content"),
    ],
)
def test_json_that_is_nearly_prompts_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        specs()["logit_lens"].parse({"prompts": text})


def branches(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The branches of a parameter, with the limits that hold for each."""
    limits = {key: value for key, value in schema.items() if key.startswith("max")}
    return [{**limits, **branch} for branch in schema.get("anyOf", [schema])]


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for part in schema.values():
            yield from nodes(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from nodes(part)


PARAMETERS = [
    (tool, name, schema)
    for tool, spec in specs().items()
    for name, schema in spec.input_schema().get("properties", {}).items()
]


@pytest.mark.parametrize("tool", specs())
def test_schemas_are_of_the_dialect_that_every_client_takes(tool: str) -> None:
    for schema in (specs()[tool].input_schema(), specs()[tool].output_schema()):
        for node in nodes(schema["properties"]):
            assert not isinstance(node.get("type"), list)
            assert node.get("additionalProperties") is not True
            assert "type" in node or "anyOf" in node or node is schema["properties"]
            assert "$ref" not in node
            assert node.get("type") != "array" or "type" in node["items"]
            assert "enum" not in node or node["type"] == "string"


LIMIT_OF = {"string": "maxLength", "array": "maxItems", "integer": "maximum"}


@pytest.mark.parametrize(("tool", "name", "schema"), PARAMETERS)
def test_every_parameter_has_a_limit(tool: str, name: str, schema: dict[str, Any]) -> None:
    for branch in branches(schema):
        if "enum" in branch or (branch["type"] == "integer" and "anyOf" in schema):
            continue  # an index may be any, and is held against the model
        if branch["type"] == "string" and name in ("site", "sites", "receivers"):
            continue  # one of a list, which another tool's definition spells out
        wanted = LIMIT_OF.get(branch["type"])
        assert wanted is None or wanted in branch


def beyond(branch: dict[str, Any]) -> Any:
    """A value of a branch that is larger than its limit."""
    items = {"string": "a", "integer": 1, "number": 0.5, "object": {}, "array": [{}]}
    if branch["type"] == "string":
        return "a" * (branch["maxLength"] + 1)
    if branch["type"] == "array":
        return [items[branch["items"]["type"]]] * (branch["maxItems"] + 1)
    if branch["type"] == "object":
        return {f"x{at}": "a" for at in range(branch["maxProperties"] + 1)}
    return branch["maximum"] + 1


LIMITED = [
    (tool, name, branch)
    for tool, name, schema in PARAMETERS
    for branch in branches(schema)
    if {"string": "maxLength", "array": "maxItems", "object": "maxProperties"}.get(branch["type"], "maximum") in branch
]


@pytest.mark.parametrize(("tool", "name", "branch"), LIMITED)
def test_what_is_beyond_a_limit_is_refused_at_once(tool: str, name: str, branch: dict[str, Any]) -> None:
    begun = time.monotonic()

    with pytest.raises(InvalidRequest):
        specs()[tool].parse(next(given for of, given in EXAMPLES if of == tool) | {name: beyond(branch)})

    assert time.monotonic() - begun < 1


MANY = 300_000
LARGE: list[tuple[str, dict[str, Any], str]] = [
    ("logit_lens", {"targets": {str(at): "a" for at in range(MANY)}}, "at most 256 categories, and 300,000 came"),
    ("logit_lens", {"targets": {"x": ["a"] * MANY}}, "at most 1,024 strings"),
    ("logit_lens", {"targets": {str(at): ["a"] * 1000 for at in range(256)}}, "at most 4,096 strings in all"),
    ("logit_lens", {"targets": {"x": "a" * MANY}}, "at most 1,024 characters"),
    ("logit_lens", {"targets": {"x" * MANY: "a"}}, "at most 1,024 characters"),
    ("attribute", {"targets": [{"x": ["a"] * 1000}] * 1000}, "at most 65,536 strings in all"),
    ("run_prompts", {"prompts": [{"prompt": "a", "targets": {"x": ["a"] * 1000}}] * 1000}, "65,536 strings in all"),
    ("run_prompts", {"prompts": ["a" * (10**6 + 1)]}, "at most 1,000,000 characters"),
    ("logit_lens", {"prompts": [[{"role": "user", "content": "a"}] * MANY]}, "at most 1,000 messages"),
    ("logit_lens", {"prompts": [[{"role": "user", "content": "a" * (10**6 + 1)}]]}, "at most 1,000,000 characters"),
    ("logit_lens", {"layers": " " * MANY}, "layers must be"),
    ("logit_lens", {"positions": [" " * MANY + ":"]}, "a position must be"),
    ("logit_lens", {"positions": {"text": "a" * MANY}}, "a position must be"),
    ("logit_lens", {"interventions": [{"op": "zero", "site": "keys", "layers": list(range(MANY))}]}, "4,096 items"),
    ("logit_lens", {"interventions": [{"op": "set_attention", "layers": 1, "pattern": [[0.1] * 1200] * 1200}]}, "num"),
    ("logit_lens", {"interventions": [{"op": "mean", "site": "keys", "layers": 1, "over": ["a"] * MANY}]}, "10,000"),
    ("collect_activations", {"prompts": {"x" * MANY: ["a"]}}, "at most 256 characters"),
    ("collect_activations", {"prompts": {"x": ["a"] * MANY}}, "at most 10,000 prompts"),
    ("patch_activations", {"positions": {"x" * MANY: 1}, "clean": "a", "corrupted": "b"}, "at most 256 characters"),
    ("read_run", {"run_id": "a-1", "where": {"x": ["a"] * MANY}}, "at most 1,024 items"),
]


@pytest.mark.parametrize(("tool", "given", "said"), LARGE)
def test_what_is_large_inside_is_refused_at_once(tool: str, given: dict[str, Any], said: str) -> None:
    arguments = ({"prompts": "a"} if "prompts" in specs()[tool].params.model_fields else {}) | given
    begun = time.monotonic()

    with pytest.raises(InvalidRequest, match=said):
        specs()[tool].parse(arguments)

    assert time.monotonic() - begun < 1
