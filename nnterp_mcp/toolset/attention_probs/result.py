"""Result and answer of `attention_probs`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import Result, ResultPart, TableAnswer


class Masses(ResultPart):
    """Attention in the mean over queries, from 0 to 1, and entropy in nats; None where no query has such a token."""

    entropy: float | None
    first: float | None
    previous: float | None
    itself: float | None
    duplicate: float | None
    induction: float | None
    sink: float | None


class KindScores(ResultPart):
    """Attention in the second of two copies of random tokens, from 0 to 1."""

    previous: float
    duplicate: float
    induction: float


class AttendedPair(ResultPart):
    """A query that attends to a key."""

    prompt: int
    query: int
    query_token: str
    key: int
    key_token: str
    probability: float


class HeadReading(ResultPart):
    """One head: means over prompts, their standard deviation where there are several, and its strongest pairs."""

    layer: int
    head: int
    mean: Masses
    deviation: Masses | None
    kinds: KindScores | None
    pairs: list[AttendedPair]

    @property
    def name(self) -> str:
        """As the literature writes it."""
        return f"L{self.layer}H{self.head}"


class HeadRead(ResultPart):
    """A head's attention from one query: to the first token, and the largest others (token, position, probability)."""

    layer: int
    head: int
    first: float
    keys: list[tuple[str, int, float]]

    @property
    def name(self) -> str:
        """As the literature writes it."""
        return f"L{self.layer}H{self.head}"

    @property
    def strongest(self) -> float:
        """The probability of the strongest key."""
        return self.keys[0][2] if self.keys else 0.0


class QueryReading(ResultPart):
    """The attention of each head from one query."""

    prompt: int
    position: int
    token: str
    heads: list[HeadRead]


class Copying(ResultPart):
    """How well the model repeats random tokens: probability of the right next token in the second copy.

    Attributes:
        sequences: The number of sequences, each of two equal copies.
        length: The tokens of a copy.
        seed: The seed with which they were drawn.
        probability: In the mean.
        log_probability: Of its logarithm, in nats.
        deviation: Standard deviation of the latter between sequences.
    """

    sequences: int
    length: int
    seed: int
    probability: float
    log_probability: float
    deviation: float


class AttentionProbsResult(Result):
    """Every head and every query that was asked for.

    Attributes:
        model: The model's handle.
        prompts: How many there were.
        tokens: Each prompt's tokens, by position.
        without_attention: Layers that were asked for and have no attention probabilities, by kind.
        interventions: What was in force.
        unscored: Why kinds of heads were not scored, where that was not the caller's choice.
        copying: What the model makes of repeated random tokens; None where kinds were not scored.
        heads: The heads.
        queries: The queries that were named.
    """

    model: str
    prompts: int
    tokens: list[list[str]] = Field(default_factory=list)
    without_attention: dict[str, list[int]]
    interventions: list[str]
    unscored: str | None
    copying: Copying | None
    heads: list[HeadReading]
    queries: list[QueryReading]


class AttentionProbsAnswer(TableAnswer):
    """The most telling heads, or what the chosen queries attend to."""

    copying: Annotated[float | None, Field(description="p(right next token), repeated random tokens.")] = None
