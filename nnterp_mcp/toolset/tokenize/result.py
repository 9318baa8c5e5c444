"""Result and answer of `tokenize`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import Answer, Result, ResultPart
from nnterp_mcp.table import TableField

COUNTED = 16
"""Prompts whose lengths an answer lists."""


class TokenizedPrompt(ResultPart):
    """One prompt's tokens."""

    text: str
    ids: list[int]
    tokens: list[str]


class TokenizeResult(Result):
    """Every prompt's tokens."""

    model: str
    prompts: list[TokenizedPrompt]


class TokenizeAnswer(Answer):
    """The tokens by position."""

    counts: Annotated[list[int], Field(description=f"Tokens of each of the first {COUNTED} prompts.")]
    tokens: TableField
