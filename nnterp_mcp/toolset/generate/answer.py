"""From a result of `generate` to its answer, and the answer as text."""

from __future__ import annotations

from statistics import fmean, median_low

from nnterp_mcp.contract import Cell, Table
from nnterp_mcp.formatting import elided, number, plural, quoted
from nnterp_mcp.render import cell, in_force, left_out, lines, table
from nnterp_mcp.toolset.generate.result import Continuation, GenerateAnswer, GenerateResult

_CHARACTERS = 2400
"""Characters of generated text that an answer may hold, about 600 tokens."""

_ROWS = 24
"""Texts that an answer may show."""

_LOG_PROBS = 48
"""Tokens whose log-probabilities an answer may show."""


def digest(result: GenerateResult) -> GenerateAnswer:
    """The texts side by side, cut to what an answer may hold."""
    runs = [
        (one.index, name, text, one.differs_at)
        for one in result.texts
        for name, text in (("baseline", one.baseline), ("edited", one.edited))
        if text is not None
    ]
    shown = runs[:_ROWS]
    limit = _CHARACTERS // ((2 if result.logprobs else 1) * len(shown))
    listed = max(1, _LOG_PROBS // len(shown))
    columns = ["prompt", "run", "tokens", "stop", "mean log-prob", "differs at", "text"]
    rows: list[list[Cell]] = [
        [
            index,
            name,
            len(text.tokens),
            "end" if text.ended else "length",
            fmean(text.log_probs),
            at if name == "edited" else None,
            elided(text.text, limit),
            *([_listed(text, listed)] if result.logprobs else []),
        ]
        for index, name, text, at in shown
    ]
    cut = sum(max(0, len(text.text) - limit + 1) for _, _, text, _ in shown)
    unlisted = sum(max(0, len(text.tokens) - listed) for _, _, text, _ in shown) if result.logprobs else 0
    return GenerateAnswer(
        finding=_finding(result),
        notes=[*in_force(result.interventions), *_left_out(len(runs) - len(shown), cut, unlisted)],
        model=result.model,
        total=len(runs),
        truncated=len(shown) < len(runs) or cut > 0 or unlisted > 0,
        table=_trimmed(Table(columns=columns + ["token log-probs"] * result.logprobs, rows=rows), result),
    )


def _listed(text: Continuation, count: int) -> list[Cell]:
    pairs = zip(text.tokens[:count], text.log_probs[:count], strict=True)
    return [[elided(token), log_prob] for token, log_prob in pairs]


def _trimmed(content: Table, result: GenerateResult) -> Table:
    """The table without what says nothing: the run where there is one only, the prompt where there is one only."""
    said_nothing = set[str]()
    if not result.interventions:
        said_nothing |= {"run", "differs at"}
    if len(result.texts) == 1:
        said_nothing.add("prompt")
    kept = [place for place, column in enumerate(content.columns) if column not in said_nothing]
    return Table(
        columns=[content.columns[place] for place in kept],
        rows=[[row[place] for place in kept] for row in content.rows],
    )


def _left_out(rows: int, characters: int, tokens: int) -> list[str]:
    notes: list[str] = []
    if rows:
        notes.append(left_out(plural(rows, "text"), "texts"))
    if characters:
        notes.append(left_out(f"{plural(characters, 'character')} of text", "texts"))
    if tokens:
        notes.append(f"Log-probabilities of {plural(tokens, 'token')} not shown.")
    return notes


def _finding(result: GenerateResult) -> str:
    count = plural(len(result.texts), "prompt")
    if not result.interventions:
        tokens = sum(len(one.baseline.tokens) for one in result.texts)
        mean = fmean(value for one in result.texts for value in one.baseline.log_probs)
        return f"{result.model} continued {count} by {plural(tokens, 'token')}, mean log-prob {number(mean)} nats."
    changed = [one.differs_at for one in result.texts if one.differs_at is not None]
    if not changed:
        return f"The interventions change nothing in the text after {count}."
    if len(result.texts) == 1:
        return f"With the interventions the text differs from token {changed[0]} on."
    changes = f"The interventions change {len(changed)} of {len(result.texts)} texts"
    return f"{changes}, in the median from token {median_low(changed)} on."


def render(answer: GenerateAnswer) -> str:
    """As text; generated text in quotes so that its lines and spaces show."""
    columns = answer.table.columns
    rows = [[_quote(column, value) for column, value in zip(columns, row, strict=True)] for row in answer.table.rows]
    return lines(answer, table(Table(columns=columns, rows=rows)))


def _quote(column: str, value: Cell) -> Cell:
    if column == "token log-probs" and isinstance(value, list):
        return ", ".join(f"{quoted(token)} {cell(log_prob)}" for token, log_prob in value)
    return quoted(str(value)) if column == "text" else value
