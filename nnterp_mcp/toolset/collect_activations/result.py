"""Result and answer of `collect_activations`."""

from __future__ import annotations

from collections import Counter

from nnterp_mcp.contract import DominantToken, Result, ResultPart, TableAnswer
from nnterp_mcp.request.sites import Site

STATES = "states"
"""The name of the array that holds the states."""


class CollectedPrompt(ResultPart):
    """A prompt: its group, its text as the model reads it, how many tokens that has."""

    group: str
    text: str
    tokens: int


class CollectedRow(ResultPart):
    """A row of the array.

    Attributes:
        row: Its number.
        prompt: The prompt's index.
        position: The token's position; None for a mean over several.
        token: The token; None for a mean.
    """

    row: int
    prompt: int
    position: int | None
    token: str | None


class GroupLength(ResultPart):
    """How long the states of a group are: the mean, and the standard deviation over rows."""

    group: str
    norm: float
    deviation: float | None


class GroupsApart(ResultPart):
    """Two groups, by the means of their states.

    Attributes:
        first: One group.
        second: The other.
        cosine: Between the two means.
        shuffled: The same when the prompts are dealt to the groups at random, in the mean of draws.
        gap: The distance between the means, as a share of the mean length of a state.
        shuffled_gap: The same at random.
    """

    first: str
    second: str
    cosine: float
    shuffled: float
    gap: float
    shuffled_gap: float


class CollectedLayer(ResultPart):
    """How the states of one layer lie.

    Attributes:
        layer: The layer; None for the embeddings.
        groups: The lengths, by group.
        pairs: Every two groups; none where there are too many.
        explained: The share of the variance along each principal component; empty for states that do not differ.
    """

    layer: int | None
    groups: list[GroupLength]
    pairs: list[GroupsApart]
    explained: list[float]


class CollectActivationsResult(Result):
    """The index of the states, which lie in an array beside it, and how they lie.

    Attributes:
        model: The model's handle.
        site: Where they were read.
        layers: In which layers; None for the embeddings.
        shape: The shape of one state: (width,) or (head, width).
        pool: What became of several positions of one prompt.
        groups: The groups of prompts.
        interventions: What was in force.
        prompts: Every prompt of the call, in its order.
        rows: The rows that were read; all of them, unless the run was stopped.
        asked: How many rows were asked for.
        bytes: Of the array.
        fitted: Of how many rows, evenly spaced, principal components were computed.
        first_left_out: Each prompt's first token is left out of means and components, for positions was `all`.
        dominant: The token whose state dominates the means.
        summaries: How the states of each layer lie; empty for a run that was stopped.
    """

    model: str
    site: Site
    layers: list[int | None]
    shape: list[int]
    pool: str
    groups: list[str]
    interventions: list[str]
    prompts: list[CollectedPrompt]
    rows: list[CollectedRow]
    asked: int
    bytes: int
    fitted: int
    first_left_out: bool = False
    dominant: DominantToken | None = None
    summaries: list[CollectedLayer]

    @property
    def averaged_rows(self) -> list[int]:
        """Where in `rows` those are that means are taken over."""
        counts = Counter(row.prompt for row in self.rows)
        spared = [self.first_left_out and row.position == 0 and counts[row.prompt] > 1 for row in self.rows]
        return [at for at, left_out in enumerate(spared) if not left_out]


class CollectActivationsAnswer(TableAnswer):
    """How the states lie by layer; where they are kept."""
