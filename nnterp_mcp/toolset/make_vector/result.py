"""Result and answer of `make_vector`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import DominantToken, Result, ResultPart, TableAnswer
from nnterp_mcp.request.vectors import VectorCard


class DirectionFacts(ResultPart):
    """One direction, at one layer or at any.

    Attributes:
        layer: The layer; None where it serves at any.
        norm: Its length.
        stream: Mean length of the states that it was made from.
        positive: Mean projection of the positive set on the direction's unit vector.
        negative: Of the negative set.
        effect: Cohen's d between these, on the prompts that made it.
        held_out: The chance that a positive prompt projects further than a negative one, both unseen.
        explained: The share of the pairs' squared differences along a principal component.
    """

    layer: int | None
    norm: float
    stream: float | None = None
    positive: float | None = None
    negative: float | None = None
    effect: float | None = None
    held_out: float | None = None
    explained: float | None = None


class MakeVectorResult(Result):
    """The vector that was made or deleted, and the one that it replaced.

    Attributes:
        model: The model's handle.
        card: What is known of the vector.
        deleted: Whether it is gone now.
        replaced: When the vector was made that had that name before.
        prompts: How many prompts each set has that it was made of.
        interventions: The interventions with which their states were read.
        first_left_out: Each prompt's first token is left out of its mean, for positions was `all`.
        dominant: The token whose state dominates the means.
        directions: By layer.
    """

    model: str
    card: VectorCard
    deleted: bool = False
    replaced: str | None = None
    prompts: list[int] = Field(default_factory=list[int])
    interventions: list[str] = Field(default_factory=list[str])
    first_left_out: bool = False
    dominant: DominantToken | None = None
    directions: list[DirectionFacts] = Field(default_factory=list[DirectionFacts])


class MakeVectorAnswer(TableAnswer):
    """The vector as an agent sees it: its directions by layer."""

    vector: Annotated[str, Field(description="The name for later calls.")]
