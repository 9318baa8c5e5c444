"""Result and answer of `generate`."""

from __future__ import annotations

from nnterp_mcp.contract import Result, ResultPart, TableAnswer


class Continuation(ResultPart):
    """One generated text; log-probabilities in nats under the model that generated it, before temperature."""

    text: str
    tokens: list[str]
    log_probs: list[float]
    ended: bool


class Continued(ResultPart):
    """One prompt, continued by the model as it is and, if there are interventions, with them in force."""

    index: int
    prompt: str
    prompt_tokens: int
    baseline: Continuation
    edited: Continuation | None
    differs_at: int | None


class GenerateResult(Result):
    """Every text, whole."""

    model: str
    interventions: list[str]
    logprobs: bool
    texts: list[Continued]


class GenerateAnswer(TableAnswer):
    """The texts as an agent sees them."""
