"""JSON schemas of what callers write, in the dialect that every client's converter understands.

A union is an `anyOf` of branches with one type each, a list says what its items are, an object that maps names of the
caller's own is left open, and each limit of the code is written down.
"""

from __future__ import annotations

from typing import Any

from pydantic import WithJsonSchema

from nnterp_mcp.request.arguments import (
    LONGEST_NAME,
    LONGEST_RANGE,
    LONGEST_TEXT,
    MOST_CATEGORIES,
    MOST_GROUPS,
    MOST_INDICES,
    MOST_NUMBERS,
    MOST_OPERATIONS,
    MOST_POSITIONS,
    MOST_PROMPTS,
    MOST_TURNS,
)

Schema = dict[str, Any]

INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
TEXT: Schema = {"type": "string"}
OBJECT: Schema = {"type": "object"}


def array(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def union(*branches: Schema, **limits: int) -> Schema:
    """One of several types; a limit holds for the branches that it can be about."""
    return {"anyOf": list(branches), **limits}


def widened(schema: Schema, *branches: Schema, **limits: int) -> Schema:
    """A union with more branches."""
    return {**schema, "anyOf": [*branches, *schema["anyOf"]], **limits}


PROMPT = union(TEXT, array(OBJECT), maxLength=LONGEST_TEXT, maxItems=MOST_TURNS)
"""One text or one chat."""

PROMPTS = union(
    OBJECT, TEXT, array(TEXT), array(OBJECT), array(array(OBJECT)), maxLength=LONGEST_TEXT, maxItems=MOST_PROMPTS
)
"""One text, a list of texts, one chat, a list of chats, or an object that says where they come from."""

INDICES = union(INTEGER, TEXT, array(INTEGER), maxLength=LONGEST_RANGE, maxItems=MOST_INDICES)
"""An index, a range, or a list of indices."""

POSITION = union(INTEGER, TEXT, OBJECT, maxLength=LONGEST_RANGE)
"""One position."""

POSITIONS = union(
    *POSITION["anyOf"],
    *(array(one) for one in POSITION["anyOf"]),
    maxLength=LONGEST_RANGE,
    maxItems=MOST_POSITIONS,
)
"""A position or a list of them."""

TARGET_MAP: Schema = {"type": "object", "maxProperties": MOST_CATEGORIES}
"""Strings by category."""

TARGET_SETS = union(OBJECT, array(OBJECT), maxProperties=MOST_CATEGORIES, maxItems=MOST_PROMPTS)
"""Strings by category, for all prompts or for each."""

GROUPS = {**PROMPTS, "maxProperties": MOST_GROUPS}
"""Prompts by group, or without groups."""

OPERATION_LIST: Schema = {**array(OBJECT), "maxItems": MOST_OPERATIONS}
"""Interventions."""

VECTOR = union(TEXT, OBJECT, array(NUMBER), maxLength=LONGEST_NAME, maxItems=MOST_NUMBERS)
"""A vector by its name, by tokens or by its numbers."""


def as_schema(schema: Schema, description: str) -> WithJsonSchema:
    """A schema for a parameter, with what a caller is to know of it."""
    return WithJsonSchema({**schema, "description": description})
