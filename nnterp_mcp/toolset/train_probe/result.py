"""Result and answer of `train_probe`."""

from __future__ import annotations

from nnterp_mcp.contract import DominantToken, Result, ResultPart, TableAnswer
from nnterp_mcp.request.vectors import VectorCard


class ProbedGroup(ResultPart):
    """A class: its name, its prompts, its rows, and how many tokens its prompts have on average."""

    name: str
    prompts: int
    rows: int
    tokens: float


class ProbedLayer(ResultPart):
    """The probes of one layer.

    Attributes:
        layer: The layer; None for the embeddings.
        accuracy: The share of held-out rows that are classified correctly.
        low: The lower end of its 95 % interval (Wilson), in which each distinct text counts once.
        high: The upper end.
        shuffled: The same accuracy with the labels permuted among the prompts, one for each shuffle.
    """

    layer: int | None
    accuracy: float
    low: float
    high: float
    shuffled: list[float]


class TrainProbeResult(Result):
    """Held-out accuracies by layer, and the controls by which to judge them.

    Attributes:
        model: The model's handle.
        method: The kind of probe.
        site: Where the states were read.
        groups: The classes.
        texts: How many distinct texts the prompts are.
        width: The width of a state; heads are laid side by side.
        folds: Folds of the cross-validation.
        paired: The i-th prompts of all groups are in one fold.
        majority: The accuracy of always saying the largest class.
        length: The held-out accuracy of a logistic probe that knows only how many tokens a prompt has.
        layers: By layer.
        interventions: The interventions with which the states were read.
        run: The run that the states were taken from; None where they were read now.
        first_left_out: Each prompt's first token is left out, for positions was `all`.
        dominant: The token whose state dominates the means of which a saved direction is made.
        vector: The direction that was saved; None for none.
        replaced: When the vector was made that had that name before.
    """

    model: str
    method: str
    site: str
    groups: list[ProbedGroup]
    texts: int
    width: int
    folds: int
    paired: bool = False
    majority: float
    length: float
    layers: list[ProbedLayer]
    interventions: list[str]
    run: str | None
    first_left_out: bool = False
    dominant: DominantToken | None = None
    vector: VectorCard | None = None
    replaced: str | None = None


class TrainProbeAnswer(TableAnswer):
    """Accuracies by layer with their controls."""
