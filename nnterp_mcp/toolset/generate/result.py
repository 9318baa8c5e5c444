"""Result and answer of `generate`."""

from __future__ import annotations

from pydantic import Field

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
        matched: By the model whose matched random features are edited; None where no features are.
        direction: By the model whose states are moved along a random direction.
        effects: The effect of the edit of features, then of each matched set and of each random direction.
    """

    index: int
    prompt: str
    prompt_tokens: int
    baseline: Continuation
    edited: Continuation | None
    differs_at: int | None
    matched: Continuation | None = None
    direction: Continuation | None = None
    effects: list[float] = Field(default_factory=list[float])

    @property
    def runs(self) -> list[tuple[str, Continuation]]:
        """Its texts under the names of their runs."""
        named = {
            "baseline": self.baseline,
            "edited": self.edited,
            "matched features": self.matched,
            "random direction": self.direction,
        }
        return [(name, text) for name, text in named.items() if text is not None]


class FeatureControls(ResultPart):
    """The controls of an edit of features: matched sets and random directions of equal norm.

    The effect of each is KL(edited ‖ baseline) of the first new token, in nats; where texts are scored, the change of
    the mean log-probability of a token.

    Attributes:
        matched: The features of each matched set.
        directions: The number of random directions.
    """

    matched: list[list[int]]
    directions: int


class GenerateResult(Result):
    """Every text, whole; `controls` where features are edited."""

    model: str
    interventions: list[str]
    logprobs: bool
    scored: bool = False
    controls: FeatureControls | None = None
    texts: list[Continued]


class GenerateAnswer(TableAnswer):
    """The texts as an agent sees them."""
