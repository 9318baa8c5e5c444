from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnterp_mcp.commands.jsonc import Commented, Malformed, parse, put

OURS = {"command": "/opt/nnterp-mcp", "args": ["serve"]}
COMMENTS = ('// a note: {"b": [1,]}\n', '/* "two\n lines" */')
GAPS = ("", " ", "\n", "\r\n\t", *COMMENTS)

names = st.one_of(st.text(), st.sampled_from(["mcpServers", "nnterp", "a", "//", '"', "{"]))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), names)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=8,
)
servers = st.dictionaries(names, values, max_size=3)
configurations = st.one_of(
    st.dictionaries(names.filter(lambda name: name != "mcpServers"), values, max_size=4),
    st.builds(
        lambda before, inside, after: {**before, "mcpServers": inside, **after},
        st.dictionaries(names, values, max_size=2),
        servers,
        st.dictionaries(names.filter(lambda name: name != "mcpServers"), values, max_size=2),
    ),
)


def written(value: Any, draw: st.DrawFn, gaps: tuple[str, ...]) -> str:
    """A value as JSON with gaps between its tokens, and commas behind last members where comments may be."""

    def gap() -> str:
        return draw(st.sampled_from(gaps))

    if isinstance(value, dict):
        parts = [f"{gap()}{json.dumps(key)}{gap()}:{gap()}{written(part, draw, gaps)}" for key, part in value.items()]
    elif isinstance(value, list):
        parts = [f"{gap()}{written(part, draw, gaps)}" for part in value]
    else:
        return json.dumps(value, ensure_ascii=draw(st.booleans()))
    spare = "," if parts and COMMENTS[0] in gaps and draw(st.booleans()) else ""
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}{(gap() + ',').join(parts)}{gap()}{spare}{gap()}{closing}"


@st.composite
def texts(draw: st.DrawFn) -> tuple[dict[str, Any], str, bool]:
    data, commented = draw(configurations), draw(st.booleans())
    gaps = GAPS if commented else GAPS[:4]
    return data, draw(st.sampled_from(gaps)) + written(data, draw, gaps) + draw(st.sampled_from(gaps)), commented


def expected(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"mcpServers": data.get("mcpServers", {}) | {"nnterp": OURS}}


@given(texts())
def test_everything_else_of_any_configuration_stays(drawn: tuple[dict[str, Any], str, bool]) -> None:
    data, text, commented = drawn
    try:
        changed = put(text, "mcpServers", "nnterp", OURS)
    except Commented:
        assert commented
        assert data["mcpServers"]["nnterp"] != OURS
        return

    assert parse(text) == data
    assert json.dumps(parse(changed)) == json.dumps(expected(data)), "values and their order"
    if not commented:
        assert json.loads(changed) == parse(changed)
    if "nnterp" not in data.get("mcpServers", {}):
        assert remains(text, changed), "every byte of it is there, in order"
    assert put(changed, "mcpServers", "nnterp", OURS) == changed


def remains(text: str, changed: str) -> bool:
    """Whether a text is still there when one comma and one more piece are taken out."""
    front = next((place for place, (a, b) in enumerate(zip(text, changed, strict=False)) if a != b), len(text))
    if changed[front : front + 1] == ",":
        changed = changed[:front] + changed[front + 1 :]
        front = next((place for place, (a, b) in enumerate(zip(text, changed, strict=False)) if a != b), len(text))
    return changed.endswith(text[front:]) and changed.startswith(text[:front])


def test_an_entry_is_written_in_the_manner_of_its_file() -> None:
    text = '{\r\n\t"mcpServers": {\r\n\t\t"git": {}, // mine\r\n\t}, // ours\r\n\t"theme": 1e400\r\n}'.replace(
        "1e400", "1"
    )

    assert put(text, "mcpServers", "nnterp", OURS) == text.replace(
        " // mine\r\n",
        ' // mine\r\n\t\t"nnterp": {\r\n\t\t\t"command": "/opt/nnterp-mcp",\r\n\t\t\t"args": [\r\n\t\t\t\t"serve"'
        "\r\n\t\t\t]\r\n\t\t}\r\n",
    )


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_file_is_begun(text: str) -> None:
    assert json.loads(put(text, "servers", "nnterp", OURS)) == {"servers": {"nnterp": OURS}}


REFUSED = """{ | [] | 1 | {"a": } | {"a": 1} {} | {"mcpServers": []} | {"mcpServers": null} | {'a': 1} | {"a": NaN}
    | /* {} | {,} | {"a": 1,,} | {"a": "\\q"} | {"a": "b\nc"} | # {} | {"a": 1"b": 2}"""


@pytest.mark.parametrize("text", [*REFUSED.split(" | "), "[" * 20_000])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        put(text, "mcpServers", "nnterp", OURS)


def test_of_equal_names_the_last_counts_as_it_does_for_parsers() -> None:
    text = '{"mcpServers": {"old": {}}, "mcpServers": {"new": {}}}'

    changed = put(text, "mcpServers", "nnterp", OURS)

    assert json.loads(changed) == {"mcpServers": {"new": {}, "nnterp": OURS}}
    assert re.match(r'\{"mcpServers": \{"old": \{\}\}, ', changed)
