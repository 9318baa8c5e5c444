"""Inserts one entry into a JSON file of another program and keeps every other byte of it, comments included.

JSONC, as editors write it, is JSON with comments and trailing commas.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<comment>//[^\r\n]*|/\*.*?\*/)|(?P<string>"(?:[^"\\\r\n]|\\.)*")"""
    r"""|(?P<mark>[{}\[\]:,])|(?P<word>[^\s{}\[\]:,"/]+)""",
    re.DOTALL,
)


class Malformed(ValueError):
    """The text is no JSON object, with or without comments."""


class Commented(ValueError):
    """The entry to be replaced has comments."""


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class _Object:
    """The offsets of an object and its members in a text.

    Attributes:
        start: Its opening brace.
        end: Its closing brace.
        members: Start and end of each member's value, by name; the last of equal names.
        last: The end of the last value, None where there is no member.
        comma: True if a comma follows the last value.
        content: The end of the last token before the closing brace.
    """

    start: int
    end: int
    members: dict[str, tuple[int, int]]
    last: int | None
    comma: bool
    content: int


def parse(text: str) -> dict[str, Any]:
    """Parses JSON with comments and trailing commas.

    Raises:
        Malformed: It is no object.
    """
    tokens = [token.text for token in _tokens(text) if token.kind not in ("space", "comment")]
    around = zip(["{", *tokens], tokens, [*tokens[1:], ""], strict=False)
    plain = [token for before, token, then in around if not _spare(before, token, then)]
    try:
        data = json.loads(" ".join(plain), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is no JSON ({error})") from None
    if not isinstance(data, dict):
        raise Malformed(f"it holds a {type(data).__name__}, not an object")
    return data


def put(text: str, section: str, name: str, value: dict[str, Any]) -> str:
    """The text with `value` under `name` in the object `section`; the text itself where it stands there already.

    Raises:
        Malformed: The text is no object, or the section none.
        Commented: The entry stands there otherwise, with comments in it.
    """
    if not text.strip():
        return json.dumps({section: {name: value}}, indent=2, ensure_ascii=False) + "\n"
    data = parse(text)
    inside = data.get(section, {})
    if not isinstance(inside, dict):
        raise Malformed(f"{section!r} in it is no object")
    if inside.get(name) == value:
        return text
    root = _object(text, next(token.start for token in _tokens(text) if token.text == "{"))
    if section not in data:
        return _insert(text, root, section, {name: value}, 1)
    holder = _object(text, root.members[section][0])
    if name not in inside:
        return _insert(text, holder, name, value, 2)
    start, end = holder.members[name]
    if any(token.kind == "comment" for token in _tokens(text[start:end])):
        raise Commented(f"{name!r} in it holds comments, which would be lost")
    return text[:start] + _written(text, value, 2) + text[end:]


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    place = 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise Malformed(f"its line {text.count(chr(10), 0, place) + 1} is no JSON")
        tokens.append(_Token(str(found.lastgroup), found.group(), place, found.end()))
        place = found.end()
    return tokens


def _spare(before: str, token: str, then: str) -> bool:
    return token == "," and then in ("}", "]") and before not in ("{", "[", ",")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _object(text: str, start: int) -> _Object:
    members: dict[str, tuple[int, int]] = {}
    depth, name, begun, last, comma, content = 0, None, None, None, False, start + 1
    for token in _tokens(text[start:]):
        place, end = start + token.start, start + token.end
        if token.kind == "space":
            continue
        if token.text in ("}", "]"):
            depth -= 1
            if depth == 0:
                return _Object(start, place, members, last, comma, content)
        content = end
        if token.kind == "comment":
            continue
        if depth == 1 and token.text == ",":
            name, begun, comma = None, None, True
        elif depth == 1 and name is None and token.kind == "string":
            name = json.loads(token.text)
        elif name is not None and depth >= 1 and not (depth == 1 and token.text == ":"):
            begun = place if begun is None else begun
            members[name], last, comma = (begun, end), end, False
        if token.text in ("{", "["):
            depth += 1
    raise Malformed("an object does not end")


def _insert(text: str, holder: _Object, name: str, value: dict[str, Any], depth: int) -> str:
    line = _newline(text)
    member = f"{line}{_indent(text) * depth}{json.dumps(name, ensure_ascii=False)}: {_written(text, value, depth)}"
    closing = "" if line in text[holder.content : holder.end] else line + _indent(text) * (depth - 1)
    before, after = text[: holder.content], text[holder.content :]
    if holder.last is not None and not holder.comma:
        before = f"{text[: holder.last]},{text[holder.last : holder.content]}"
    return before + member + closing + after


def _written(text: str, value: dict[str, Any], depth: int) -> str:
    """A value in the indentation of a text."""
    written = json.dumps(value, indent=_indent(text), ensure_ascii=False)
    return written.replace("\n", _newline(text) + _indent(text) * depth)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _indent(text: str) -> str:
    found = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    return found.group(1) if found else "  "
