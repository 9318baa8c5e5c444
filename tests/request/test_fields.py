from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.positions import Layers, Positions, TextPosition, TurnPosition
from nnterp_mcp.request.prompts import Message, Prompts
from nnterp_mcp.request.targets import Targets, TokenId

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PARSERS = {field: TypeAdapter(field) for field in (Prompts, Layers, Positions, Targets)}


def parse(field: Any, value: Any) -> Any:
    return PARSERS[field].validate_python(value)


def wrong(field: Any, value: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        parse(field, value)
    (error,) = caught.value.errors()
    return error["msg"].removeprefix("Value error, ")


@given(json_values)
def test_anything_is_parsed_or_refused_with_one_sentence(value: Any) -> None:
    for parser in PARSERS.values():
        try:
            parser.validate_python(value)
        except ValidationError as error:
            (detail,) = error.errors()
            assert detail["type"] == "value_error"
            assert len(detail["msg"]) < 400


@pytest.mark.parametrize(
    ("given_", "meant"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([{"role": "user", "content": "a"}], ([Message(role="user", content="a")],)),
        (["a", [{"role": "user", "content": "b"}]], ("a", [Message(role="user", content="b")])),
    ],
)
def test_prompts(given_: Any, meant: Any) -> None:
    assert parse(Prompts, given_) == meant


def test_a_content_in_parts_is_their_text() -> None:
    parts = [{"type": "text", "text": "The capital"}, {"type": "text", "text": " of France"}]

    assert parse(Prompts, [{"role": "user", "content": parts}]) == (
        [Message(role="user", content="The capital of France")],
    )
    assert Message(role="user", content="a").model_dump() == {"role": "user", "content": "a"}, "closed says nothing"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "prompts is empty: give at least one prompt"),
        ("", "prompt 0 is empty: give at least one token of text"),
        (["a", ""], "prompt 1 is empty: give at least one token of text"),
        (["a", []], "prompt 1 is empty: give at least one token of text"),
        (
            5,
            "prompts must be a string, a list of chat messages {role, content}, or a list of these, not 5",
        ),
        (
            [{"role": "user", "text": "a"}],
            "message 0 of the chat has no content: a message is {role, content}",
        ),
        (
            [[{"role": "user", "content": "a", "name": "b"}]],
            "message 0 of the chat has 'name': a message is {role, content}, the last one with closed if need be",
        ),
        (
            ["a", [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]],
            "message 0 of the chat has no content that can be read: part 1 of the content is of the type 'image_url', "
            'and only text is read: {"type": "text", "text": …}',
        ),
    ],
)
def test_prompts_that_are_refused(value: Any, message: str) -> None:
    assert wrong(Prompts, value) == message


@pytest.mark.parametrize(
    ("given_", "meant"),
    [("all", "all"), (3, 3), (-1, -1), ([0, 2], (0, 2)), ("4:20", "4:20"), ("::-1", "::-1"), (" 1 : ", " 1 : ")],
)
def test_layers(given_: Any, meant: Any) -> None:
    assert parse(Layers, given_) == meant


@pytest.mark.parametrize(
    "value", ["some", True, 1.5, [], [True], ["1"], "1:2:0", "1:2:-00", "1:2:3:4", "²:", "9" * 5000 + ":"]
)
def test_layers_that_are_refused(value: Any) -> None:
    assert wrong(Layers, value) == (
        f"layers must be an integer, a list of integers, a range such as '4:20' or 'all', not {shown(value)}"
    )


@pytest.mark.parametrize(
    ("given_", "meant"),
    [
        ("last", ("last",)),
        ([0, "all", "2:5"], (0, "all", "2:5")),
        ({"text": "France"}, (TextPosition(text="France"),)),
        ([{"text": "France", "occurrence": -1}], (TextPosition(text="France", occurrence=-1),)),
        ({"turn": 0}, (TurnPosition(turn=0),)),
        ({"role": "user"}, (TurnPosition(role="user"),)),
        ([{"turn": -1, "role": "user", "part": "after"}, 2], (TurnPosition(turn=-1, role="user", part="after"), 2)),
        ({"turn": 1, "text": "France", "occurrence": 2}, (TurnPosition(turn=1, text="France", occurrence=2),)),
        (TurnPosition(turn=1).model_dump(mode="json"), (TurnPosition(turn=1),)),
    ],
)
def test_positions(given_: Any, meant: Any) -> None:
    assert parse(Positions, given_) == meant


@pytest.mark.parametrize(
    "value",
    [
        "first",
        True,
        1.5,
        {"text": ""},
        {"word": "a"},
        "a:b",
        None,
        {"turn": "0"},
        {"turn": True},
        {"turn": 0, "part": "before"},
        {"role": ""},
        {"turn": 0, "text": ""},
        {"turn": 0, "word": "a"},
    ],
)
def test_positions_that_are_refused(value: Any) -> None:
    assert wrong(Positions, value) == (
        "a position must be an integer, 'last', 'all', a range such as '2:5', {\"text\": …, \"occurrence\": …} or "
        'a chat\'s {"turn": …, "role": …, "part": "content" or "after", "text": …, "occurrence": …}, '
        f"not {shown(value)}"
    )


def test_no_positions() -> None:
    assert wrong(Positions, []) == "positions is empty: give at least one position"


TARGET = 'non-empty string, or {"id": N} for exactly one token'


def test_targets() -> None:
    given_ = {"capital": "Paris", "traps": ["London", "Madrid"], "one": {"id": 5}, "both": ["a", {"id": 7}]}
    meant = {
        "capital": ("Paris",),
        "traps": ("London", "Madrid"),
        "one": (TokenId(id=5),),
        "both": ("a", TokenId(id=7)),
    }

    assert parse(Targets, given_) == meant
    assert parse(Targets, meant) == meant


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Paris", "targets must map a category to one string or a list of strings, not 'Paris'"),
        ({"a": 5}, "targets must map a category to one string or a list of strings, not {'a': 5}"),
        ({"a": {"id": -1}}, f"target category 'a' needs at least one {TARGET}, not {{'id': -1}}"),
        ({"a": []}, f"target category 'a' needs at least one {TARGET}, not []"),
        ({"a": ["b", ""]}, f"target category 'a' needs at least one {TARGET}, not ['b', '']"),
    ],
)
def test_targets_that_are_refused(value: Any, message: str) -> None:
    assert wrong(Targets, value) == message


def test_a_long_value_is_shown_in_part() -> None:
    assert shown("x" * 1000) == "'" + "x" * 78 + "…"


@pytest.mark.parametrize(
    "value",
    ["a" * 10**7, [0] * 10**6, {f"k{number}": 0 for number in range(10**6)}, [[["a" * 10**6] * 100] * 100] * 100],
    ids=["text", "list", "map", "nested"],
)
def test_a_large_value_is_shown_by_its_beginning_without_being_read_whole(value: object) -> None:
    import time

    begun = time.process_time()
    said = shown(value)

    assert time.process_time() - begun < 0.02
    assert len(said) == 80
    assert said.endswith("…")
    assert repr(value)[:79] == said[:79] if not isinstance(value, list) or value[0] == 0 else said.startswith("[[['aaa")


@pytest.mark.parametrize("value", ["a", [1, [2, {"b": None}]], {}, ("x",), 1.5, "x" * 78])
def test_a_small_value_is_shown_whole(value: object) -> None:
    assert shown(value) == repr(value)
