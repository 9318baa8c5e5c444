"""Result and answer of `tokenize`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from nnterp_mcp.contract import Answer, Result, TableField

COUNTED = 16
"""Prompts whose lengths an answer lists."""


class TokenizedPrompt(BaseModel):
    """One prompt's tokens."""

    model_config = ConfigDict(extra="forbid")

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
