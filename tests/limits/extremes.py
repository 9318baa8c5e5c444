"""Values at the limits of a parameter and beyond them, whatever the parameter is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

PLAIN: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**30,
        -(10**30),
        0.5,
        3.0,
        1e308,
        5e-324,
        "",
        " ",
        "\0",
        "\x1b[2J",
        "\u2028",
    ),
    *("NaN", "[]", "{}", "[1,", "1e999", "all", "0:3", "::", "../../etc/passwd", "tiny-llama", "\ud7ff", "🦜" * 500),
    *([], {}, [None], [[]], {"": None}, [0], [-1, 2**40], {"a": "b"}, {"a": ["b", ""]}, [{"role": "user"}], ["a", "b"]),
    *(
        [{"op": "zero"}],
        {"text": ""},
        {"text": "a", "occurrence": 10**12},
        {"prompt": 0},
        {"run": "x"},
        ["\t"],
        ["a"] * 3,
    ),
)
"""Small values of every kind."""


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def large(size: int) -> Iterator[Any]:
    """Values of about so many parts, of every kind."""
    yield "a" * size
    yield "[" + "0," * (size // 2) + "0]"
    yield [0] * size
    yield ["a"] * size
    yield [["a", "b"]] * (size // 4)
    yield {f"k{number}": "a" for number in range(size // 2)}
    yield {"a": ["a"] * size}
    yield [{"role": "user", "content": "a"}] * (size // 6)
    yield [[{"role": "user", "content": "a"}]] * (size // 6)
    yield [{"prompt": "a", "targets": {"a": "b"}}] * (size // 8)
    yield [{"op": "zero", "layers": 0, "site": "mlps_output"}] * (size // 8)
    yield [{"text": "a"}] * (size // 4)
    yield [[0.5] * 300] * (size // 300)
    yield _nested(60)


def edges(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Values at the limits that a schema names, and one beyond each."""
    for part in schema.get("anyOf", [schema]):
        for name, step in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", -1), ("exclusiveMaximum", 1)):
            if name in part:
                yield from (part[name], part[name] + step)
        if "maxLength" in part:
            yield from ("a" * part["maxLength"], "a" * (part["maxLength"] + 1))
        if "maxItems" in part:
            item = 0 if part.get("items", {}).get("type") == "integer" else "a"
            yield from ([item] * part["maxItems"], [item] * (part["maxItems"] + 1))
        if "maxProperties" in part:
            count = part["maxProperties"]
            yield from ({f"k{number}": "a" for number in range(size)} for size in (count, count + 1))


def extremes(schema: Mapping[str, Any]) -> list[Any]:
    """Everything that one parameter is tried with; what is as large as a request may be, a tool is tried with once."""
    return [*PLAIN, *edges(schema), *large(1100)]
