from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.pool.messages import Call, to_line
from nnterp_mcp.toolset import specs
from tests.request.test_fields import json_values

LENS = specs()["logit_lens"]
names = sorted({name for spec in specs().values() for name in spec.params.model_fields})


def refusal(spec: ToolSpec[Any, Any, Any], **arguments: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        spec.parse(arguments)
    return caught.value.message


@given(st.sampled_from(sorted(specs())), st.dictionaries(st.sampled_from(names) | st.text(max_size=8), json_values))
@example("logit_lens", {"prompts": "a", "layers": "1" * 5000})
@example("logit_lens", {"prompts": "a", "layers": "[" * 100_000})
@example("logit_lens", {"prompts": "a", "targets": '{"a": "\\ud800"}'})
@example("logit_lens", {"prompts": "a", "top_k": 10**400})
def test_any_arguments_are_parsed_or_refused(tool: str, arguments: dict[str, Any]) -> None:
    spec = specs()[tool]
    try:
        params = spec.parse(arguments)
    except InvalidRequest:
        return
    # What the worker gets is what the server understood.
    line = to_line(Call(id=1, tool=tool, params=params.model_dump(mode="json")))
    assert spec.params.model_validate(json.loads(line)["params"]) == params


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ({"layers": "[0, 1]"}, {"layers": (0, 1)}),
        ({"layers": "3"}, {"layers": 3}),
        ({"targets": '{"a": "b"}'}, {"targets": {"a": ("b",)}}),
        ({"positions": "[0, -1]"}, {"positions": (0, -1)}),
        ({"top_k": "5"}, {"top_k": 5}),
    ],
)
def test_json_text_is_read_where_no_text_is_wanted(sent: dict[str, Any], meant: dict[str, Any]) -> None:
    assert LENS.parse({"prompts": "a"} | sent).model_dump(include=set(meant)) == meant


def test_an_unknown_argument_is_named_with_the_known_ones() -> None:
    assert refusal(LENS, prompts="a", layer=3) == (
        f"logit_lens has no argument 'layer': its arguments are {', '.join(LENS.params.model_fields)}."
    )


def test_a_missing_argument_is_named() -> None:
    assert refusal(LENS) == "logit_lens needs the argument 'prompts'."


def test_a_wrong_value_is_shown_with_what_is_allowed() -> None:
    assert refusal(LENS, prompts="a", top_k=50) == "top_k: input should be less than or equal to 20, not 50."
    assert refusal(specs()["load_model"], model="a", dtype="int4") == (
        "dtype: input should be 'auto', 'float32', 'bfloat16' or 'float16', not 'int4'."
    )


def test_every_fault_is_told_at_once() -> None:
    assert refusal(LENS, prompts="", top_k=0, positon=1).splitlines() == [
        "prompt 0 is empty: give at least one token of text.",
        "top_k: input should be greater than or equal to 1, not 0.",
        f"logit_lens has no argument 'positon': its arguments are {', '.join(LENS.params.model_fields)}.",
    ]


@pytest.mark.parametrize("tool", sorted(specs()))
def test_schemas_are_plain(tool: str) -> None:
    spec = specs()[tool]
    for schema in (spec.input_schema(), spec.output_schema()):
        assert schema["type"] == "object"
        assert "title" not in schema
        assert not any("title" in field or field.get("default", "") is None for field in schema["properties"].values())
        assert "null" not in str(spec.input_schema())


@pytest.mark.parametrize("tool", sorted(specs()))
def test_agents_are_not_told_limits_that_only_guard_the_server(tool: str) -> None:
    whole, advertised = (
        getattr(specs()[tool], schema)()["properties"] for schema in ("input_schema", "advertised_schema")
    )
    guards = {"maxLength", "maxItems", "maxProperties"}
    assert list(advertised) == list(whole)
    for name, field in advertised.items():
        assert not guards & set(field)
        assert {**field, **whole[name]} == whole[name]
        assert field.get("maximum") == whole[name].get("maximum") or whole[name]["maximum"] > 50


def test_params_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        LENS.parse({"prompts": "a"}).top_k = 4
