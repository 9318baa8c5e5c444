"""From a result of `tokenize` to its answer, and the answer as text."""

from __future__ import annotations

from nnterp_mcp.contract import Cell, Table
from nnterp_mcp.formatting import elided, plural, quoted
from nnterp_mcp.render import lines, table
from nnterp_mcp.toolset.tokenize.result import COUNTED, TokenizeAnswer, TokenizeResult

_SHOWN = 48
"""Tokens that an answer lists."""


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
    listed = ", ".join(map(str, counts[:COUNTED])) + (", …" if len(counts) > COUNTED else "")
    lengths = f"{plural(total, 'token')} ({listed})" if many else plural(total, "token")
    hidden = total - len(rows)
    return TokenizeAnswer(
        finding=f"{plural(len(counts), 'prompt')} of {lengths} for {result.model}.",
        notes=[f"{plural(hidden, 'token')} not shown; tokenize fewer prompts at once to see them."] if hidden else [],
        counts=counts[:COUNTED],
        tokens=Table(
            columns=["prompt", "position", "id", "token"] if many else ["position", "id", "token"],
            rows=[row if many else row[1:] for row in rows],
        ),
    )


def render(answer: TokenizeAnswer) -> str:
    """As text, tokens in quotes so that their spaces show."""
    rows = [[*row[:-1], quoted(str(row[-1]))] for row in answer.tokens.rows]
    return lines(answer, table(Table(columns=answer.tokens.columns, rows=rows)))
