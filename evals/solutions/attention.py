"""Which heads look where, and what they carry, by the tools."""

from __future__ import annotations

from typing import Any

from evals.questions.attention import CAPITAL, CODES, COPIERS, COUNTRIES, READER
from evals.solutions.rows import Row, rows, top_token
from evals.tools import Tools

_KINDS = "on random tokens: induction, previous, duplicate"


async def _best(tools: Tools, kind: int) -> Row:
    """The head that scores highest as one of three kinds on repeated random tokens."""
    shown = rows(await tools.call("attention_probs", prompts=CAPITAL, kinds=True))
    return max(shown, key=lambda row: row[_KINDS][kind])


async def induction_head(tools: Tools) -> str:
    """The strongest one is always shown."""
    return (await _best(tools, 0))["head"]


async def induction_strength(tools: Tools) -> float:
    """Its score."""
    return (await _best(tools, 0))[_KINDS][0]


async def previous_head(tools: Tools) -> str:
    """The strongest one is always shown."""
    return (await _best(tools, 1))["head"]


async def read_token(tools: Tools) -> str:
    """A row of one head and one query: the first token's share, then the others'."""
    layer, head = READER
    answer = await tools.call("attention_probs", prompts=CAPITAL, layers=layer, heads=head, query_positions="last")
    (row,) = rows(answer)
    token, _, share = row["attends to: token, at, p"][0]
    return token if share > row["first"] else CAPITAL.split()[0]


async def written_without_reader(tools: Tools) -> str:
    """A text that begins with the token."""
    layer, head = READER
    answer = await tools.call("generate", prompts=COUNTRIES, max_new_tokens=1, interventions=[_zero(layer, head)])
    return rows(answer)[-1]["text"]


async def copied_without_copiers(tools: Tools) -> str:
    """The last layer under interventions."""
    answer = await tools.call(
        "logit_lens", prompts=CODES, layers=-1, interventions=[_zero(layer, head) for layer, head in COPIERS]
    )
    return top_token(rows(answer)[-1])


def _zero(layer: int, head: int) -> dict[str, Any]:
    return {"op": "zero", "site": "heads_output", "layers": layer, "heads": head}


SOLUTIONS = {
    "induction-head": induction_head,
    "induction-strength": induction_strength,
    "previous-head": previous_head,
    "read-token": read_token,
    "written-without-reader": written_without_reader,
    "copied-without-copiers": copied_without_copiers,
}
