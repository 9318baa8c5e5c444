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


class AlignedLayer(ResultPart):
    """A subspace found by alignment search, and interchange accuracies on pairs that did not train it.

    Attributes:
        layer: The layer after which states are interchanged.
        accuracy: The share of pairs that give the counterfactual answer with the source's part in the subspace put in.
        certainty: The mean probability of that answer among the possible ones.
        whole: The accuracy with the source's whole state put in.
        unpatched: That with nothing put in.
        randoms: That of each of some random subspaces of the same size.
        shuffled: That of a subspace trained on shuffled answers.
        untrained: That of a subspace trained in a randomly initialised model; None where there is no such model.
        untrained_unpatched: That of this model with nothing put in.
    """

    layer: int
    accuracy: float
    certainty: float
    whole: float
    unpatched: float
    randoms: list[float]
    shuffled: float
    untrained: float | None = None
    untrained_unpatched: float | None = None

    @property
    def control(self) -> float:
        """The largest accuracy of the controls; that of the untrained model where its subspace raised it."""
        raised = (self.untrained or 0.0) > (self.untrained_unpatched or 0.0)
        return max(self.unpatched, *self.randoms, self.shuffled, (self.untrained or 0.0) * raised)


class AlignmentFacts(ResultPart):
    """An alignment search.

    Attributes:
        train: The pairs that trained the subspaces.
        test: The pairs on which they were measured.
        dimensions: The dimensions of each subspace.
        answers: The possible answers.
        own: The answers are the model's own to the source prompts.
        shared: The pairs to measure on one of whose prompts served to train.
        no_untrained: The reason why no randomly initialised model was trained; None where one was.
    """

    train: int
    test: int
    dimensions: int
    answers: list[str]
    own: bool
    shared: int
    no_untrained: str | None


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
        alignment: The search that found it; None of other methods.
        aligned: Its figures by layer.
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
    alignment: AlignmentFacts | None = None
    aligned: list[AlignedLayer] = Field(default_factory=list[AlignedLayer])


class MakeVectorAnswer(TableAnswer):
    """The vector as an agent sees it: its directions by layer."""

    vector: Annotated[str, Field(description="The name for later calls.")]
