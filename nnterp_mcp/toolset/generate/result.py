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
    """One prompt, continued by the unedited model and, if there are interventions, by the edited one.

    Where nothing is generated, tokens and log-probabilities are those of the prompt itself from its second token on.

    Attributes:
        index: The prompt's index.
        prompt: Its text.
        prompt_tokens: Its length.
        baseline: By the unedited model.
        edited: By the edited model; None without interventions.
        differs_at: The first new token that differs, from 0; None where none does.
    """

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
    scored: bool = False
    texts: list[Continued]


class GenerateAnswer(TableAnswer):
    """The texts as an agent sees them."""
