"""From a result of `tokenize` to its answer, and the answer as text."""

from __future__ import annotations

from nnterp_mcp.formatting import plural
from nnterp_mcp.table import Column, Kind, tabulate
from nnterp_mcp.toolset.tokenize.result import COUNTED, TokenizeAnswer, TokenizeResult

_SHOWN = 48
"""Tokens that an answer lists."""


def digest(result: TokenizeResult) -> TokenizeAnswer:
    """The first tokens of the prompts, shared evenly."""
    room = max(1, _SHOWN // len(result.prompts))
    shown = [
        (index, position, prompt)
        for index, prompt in enumerate(result.prompts[:_SHOWN])
        for position in range(min(room, len(prompt.ids)))
    ]
    counts = [len(prompt.ids) for prompt in result.prompts]
    total, many = sum(counts), len(counts) > 1
    listed = ", ".join(map(str, counts[:COUNTED])) + (", …" if len(counts) > COUNTED else "")
    lengths = f"{plural(total, 'token')} ({listed})" if many else plural(total, "token")
    hidden = total - len(shown)
    return TokenizeAnswer(
        finding=f"{plural(len(counts), 'prompt')} of {lengths} for {result.model}.",
        notes=[f"{plural(hidden, 'token')} not shown; tokenize fewer prompts at once to see them."] if hidden else [],
        counts=counts[:COUNTED],
        tokens=tabulate(
            [
                Column("prompt", lambda at: at[0], shown=many),
                Column("position", lambda at: at[1]),
                Column("id", lambda at: at[2].ids[at[1]]),
                Column("token", lambda at: at[2].tokens[at[1]], Kind.TOKEN),
            ],
            shown,
        ),
    )
