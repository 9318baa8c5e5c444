"""`tokenize`: what it takes and what it answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from nnterp_mcp.contract import Answer, Cell, ModelParams, Result, Table, TableField, ToolSpec
from nnterp_mcp.render import elided, lines, plural, quoted, table
from nnterp_mcp.request.fields import Prompts

_SHOWN = 48
"""Tokens that an answer lists."""

_COUNTED = 16
"""Prompts whose lengths an answer lists."""


class TokenizeParams(ModelParams):
    """What to split into tokens."""

    prompts: Prompts
    chat: Annotated[
        bool, Field(description="Put a plain text through the chat template as the user's message first.")
    ] = False


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

    counts: Annotated[list[int], Field(description=f"Tokens of each of the first {_COUNTED} prompts.")]
    tokens: TableField


def digest(result: TokenizeResult) -> TokenizeAnswer:
    """The first tokens of the prompts, shared evenly."""
    room = max(1, _SHOWN // len(result.prompts))
    rows: list[list[Cell]] = [
        [index, position, token, elided(prompt.tokens[position])]
        for index, prompt in enumerate(result.prompts[:_SHOWN])
        for position, token in enumerate(prompt.ids[:room])
    ]
    counts = [len(prompt.ids) for prompt in result.prompts]
    total, many = sum(counts), len(counts) > 1
    listed = ", ".join(map(str, counts[:_COUNTED])) + (", …" if len(counts) > _COUNTED else "")
    lengths = f"{plural(total, 'token')} ({listed})" if many else plural(total, "token")
    hidden = total - len(rows)
    return TokenizeAnswer(
        finding=f"{plural(len(counts), 'prompt')} of {lengths} for {result.model}.",
        notes=[f"{plural(hidden, 'token')} not shown; tokenize fewer prompts at once to see them."] if hidden else [],
        counts=counts[:_COUNTED],
        tokens=Table(
            columns=["prompt", "position", "id", "token"] if many else ["position", "id", "token"],
            rows=[row if many else row[1:] for row in rows],
        ),
    )


def render(answer: TokenizeAnswer) -> str:
    """As text, tokens in quotes so that their spaces show."""
    rows = [[*row[:-1], quoted(str(row[-1]))] for row in answer.tokens.rows]
    return lines(answer, table(Table(columns=answer.tokens.columns, rows=rows)))


SPEC = ToolSpec(
    name="tokenize",
    title="Show tokens and positions",
    description=(
        "Splits prompts into the model's tokens, with the ids and positions that other tools refer to. In a chat, the "
        'position {"turn": 0} means the content of a message (with "role" among those of that role, with "text" a '
        'piece of it), and with "part": "after" what the template writes behind it. A chat that ends with the '
        """assistant's message is continued, unless that has "closed": true."""
    ),
    params=TokenizeParams,
    result=TokenizeResult,
    answer=TokenizeAnswer,
    digest=digest,
    render=render,
    recorded=False,
    served=True,
)
