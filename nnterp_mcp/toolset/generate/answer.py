"""From a result of `generate` to its answer, and the answer as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median_low

from nnterp_mcp.formatting import elided, number, plural
from nnterp_mcp.render import in_force, left_out
from nnterp_mcp.table import Column, Kind, Table, tabulate
from nnterp_mcp.toolset.generate.result import Continuation, Continued, GenerateAnswer, GenerateResult

_CHARACTERS = 2400
"""Characters of generated text that an answer may hold, about 600 tokens."""

_ROWS = 24
"""Texts that an answer may show."""

_LOG_PROBS = 48
"""Tokens whose log-probabilities an answer may show."""


def digest(result: GenerateResult) -> GenerateAnswer:
    """The texts side by side, cut to what an answer may hold."""
    runs = [(one, name, text) for one in result.texts for name, text in one.runs]
    shown = runs[:_ROWS]
    limit = _CHARACTERS // ((2 if result.logprobs else 1) * len(shown))
    listed = max(1, _LOG_PROBS // len(shown))
    cut = sum(max(0, len(text.text) - limit + 1) for _, _, text in shown)
    unlisted = sum(max(0, len(text.tokens) - listed) for _, _, text in shown) if result.logprobs else 0
    return GenerateAnswer(
        finding=" ".join([_finding(result), *_next_to_controls(result)]),
        notes=[*in_force(result.interventions), *_unmatched(result), *_left_out(len(runs) - len(shown), cut, unlisted)],
        model=result.model,
        total=len(runs),
        truncated=len(shown) < len(runs) or cut > 0 or unlisted > 0,
        table=_table(shown, result, limit, listed),
    )


_Run = tuple[Continued, str, Continuation]
"""A prompt, the name of a run, and what it generated."""


def _table(runs: Sequence[_Run], result: GenerateResult, limit: int, listed: int) -> Table:
    edited = bool(result.interventions)
    writes = edited and not result.scored
    columns: list[Column[_Run]] = [
        Column("prompt", lambda run: run[0].index, shown=len(result.texts) > 1),
        Column("run", lambda run: run[1], shown=edited),
        Column("tokens", lambda run: len(run[2].tokens)),
        Column("stop", lambda run: "end" if run[2].ended else "length", shown=not result.scored),
        Column("mean log-prob", lambda run: _mean(run[2])),
        Column("perplexity", lambda run: None if (mean := _mean(run[2])) is None else math.exp(min(-mean, 700))),
        Column("differs at", lambda run: run[0].differs_at if run[1] == "edited" else None, shown=writes),
        Column("text", lambda run: elided(run[2].text, limit), Kind.TEXT),
        Column("token log-probs", lambda run: _log_probs(run[2], listed), Kind.TOKENS, result.logprobs),
    ]
    return tabulate(columns, runs)


def _log_probs(text: Continuation, count: int) -> list[tuple[str, float]]:
    return list(zip(text.tokens[:count], text.log_probs[:count], strict=True))


def _left_out(rows: int, characters: int, tokens: int) -> list[str]:
    notes = left_out(rows, "text", "texts")
    if characters:
        notes.append(f"{plural(characters, 'character')} of text not shown: read_run part=texts.")
    if tokens:
        notes.append(f"Log-probabilities of {plural(tokens, 'token')} not shown: read_run part=texts.")
    return notes


def _mean(text: Continuation) -> float | None:
    """The mean log-probability of a token; None for a text without any."""
    return fmean(text.log_probs) if text.log_probs else None


def _score(result: GenerateResult) -> str:
    """Mean log-probabilities of the prompts' own tokens."""
    runs: dict[str, list[Continuation]] = {}
    for one in result.texts:
        for name, text in one.runs[:2]:
            runs.setdefault("unedited" if name == "baseline" else name, []).append(text)
    parts: list[str] = []
    for name, texts in runs.items():
        values = [value for text in texts for value in text.log_probs]
        if values:
            mean = fmean(values)
            parts.append(f"{name} {number(mean)} nats a token (perplexity {number(math.exp(min(-mean, 700)))})")
    scored = sum(len(one.baseline.tokens) for one in result.texts)
    return f"Mean log-probability of {plural(scored, 'token')} after the first: {', '.join(parts) or 'none to score'}."


def _unmatched(result: GenerateResult) -> list[str]:
    none = result.controls is not None and not result.controls.matched
    return ["No other features are active there, so that none are edited as a control."] if none else []


def _next_to_controls(result: GenerateResult) -> list[str]:
    """The effect of an edit of features next to those of its controls, each in the mean over the prompts."""
    controls = result.controls
    if controls is None or not result.texts:
        return []
    edit, *others = [fmean(effects) for effects in zip(*(one.effects for one in result.texts), strict=True)]
    matched, directions = others[: len(controls.matched)], others[len(controls.matched) :]
    named = "The mean log-probability changes by" if result.scored else "KL(edited || baseline) of the first new token:"
    parts = [f"{named} {number(edit)} nats"]
    for values, what in (
        (matched, plural(len(matched), "set") + " of matched features"),
        (directions, plural(len(directions), "random direction") + " of equal norm"),
    ):
        if values:
            spread = f"{number(min(values))} to {number(max(values))}"
            as_large = sum(abs(value) >= abs(edit) for value in values)
            parts.append(f"{what} {spread} ({as_large or 'none'} as large)")
    return [f"{'; '.join(parts)}."]


def _finding(result: GenerateResult) -> str:
    if result.scored:
        return _score(result)
    count = plural(len(result.texts), "prompt")
    if not result.interventions:
        tokens = sum(len(one.baseline.tokens) for one in result.texts)
        mean = fmean(value for one in result.texts for value in one.baseline.log_probs)
        return f"{result.model} continued {count} by {plural(tokens, 'token')}, mean log-prob {number(mean)} nats."
    changed = [one.differs_at for one in result.texts if one.differs_at is not None]
    if not changed:
        return f"The interventions change nothing in the text after {count}."
    if len(result.texts) == 1:
        return f"With the interventions the text differs from new token {changed[0]} on."
    changes = f"The interventions change {len(changed)} of {len(result.texts)} texts"
    return f"{changes}, in the median from token {median_low(changed)} on."
