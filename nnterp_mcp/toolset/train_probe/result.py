"""Result and answer of `train_probe`."""

from __future__ import annotations

from pydantic import Field

from nnterp_mcp.contract import DominantToken, Measured, Result, ResultPart, TableAnswer
from nnterp_mcp.request.vectors import ReadTokens, VectorCard


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


class SparseProbe(ResultPart):
    """The probe of a few features of a dictionary.

    Attributes:
        count: How many features it reads; None for the probe of the states that the dictionary reads.
        features: Those that differ most between the classes over all rows; each fold chooses its own.
        accuracy: The share of held-out rows that are classified correctly.
        low: The lower end of its 95 % interval (Wilson), in which each distinct text counts once.
        high: The upper end.
        shuffled: The same accuracy with the labels permuted among the prompts, one for each shuffle.
    """

    count: int | None
    features: list[int]
    accuracy: float
    low: float
    high: float
    shuffled: list[float]


class ProjectedGroup(ResultPart):
    """A group's rows along a direction.

    Attributes:
        group: Its name.
        mean: The mean projection on the unit direction.
        deviation: Their standard deviation.
        assigned: The share of rows above the probe's threshold, which it assigns to its first class; None for a vector,
            which has no threshold.
    """

    group: str
    mean: float
    deviation: float
    assigned: float | None


class GroupPair(ResultPart):
    """How well a direction separates two groups.

    Attributes:
        first: A group.
        second: Another one.
        auc: The chance that a row of the first projects further than one of the second; 0.5 is chance.
        low: The lower end of its 95 % interval (Newcombe), in which each distinct text counts once.
        high: The upper end.
    """

    first: str
    second: str
    auc: float
    low: float
    high: float


class AppliedLayer(ResultPart):
    """A saved direction at one layer.

    Attributes:
        layer: The layer; None for the embeddings.
        accuracy: The share of rows on their class's side of the threshold, with its interval (Wilson); None where the
            groups are not the probe's classes, or it is a vector without a threshold.
        threshold: The projection above which a row is assigned to the first class; None for a vector.
        groups: The groups along it.
        pairs: Every two groups.
    """

    layer: int | None
    accuracy: Measured | None
    threshold: float | None
    groups: list[ProjectedGroup]
    pairs: list[GroupPair]


class ScoredRow(ResultPart):
    """A row of the array `scores`: the state of one prompt at one position; None for several at once."""

    group: str
    prompt: int
    position: int | None
    text: str


class AppliedProbe(ResultPart):
    """A saved probe or vector on prompts that it was not fitted to.

    Attributes:
        card: The probe.
        reading: The tokens that were read.
        fitted_texts: Distinct texts among the prompts that the probe was fitted on as well.
    """

    card: VectorCard
    reading: ReadTokens
    fitted_texts: int


class TrainProbeResult(Result):
    """Held-out accuracies by layer, and the controls by which to judge them; or a saved probe on other prompts.

    Attributes:
        model: The model's handle.
        method: The kind of probe.
        site: Where the states were read.
        groups: The classes.
        texts: How many distinct texts the prompts are.
        width: The width of a state; heads are laid side by side.
        folds: Folds of the cross-validation; 0 where a saved probe is applied.
        paired: The i-th prompts of all groups are in one fold.
        majority: The accuracy of always saying the largest class.
        length: The held-out accuracy of a logistic probe that knows only how many tokens a prompt has; of a saved probe
            that is applied, the area under the ROC curve of the token count between its first two groups.
        layers: By layer; empty where a saved probe is applied, or features are probed.
        dictionary: The dictionary whose features are probed.
        sparse: The probes of its features, and last that of the states.
        applied: The saved probe that is applied; None where probes are fitted.
        directions: The saved probe on these prompts, by layer.
        rows: The rows of the array `scores`, which a saved probe gives.
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
    dictionary: str | None = None
    sparse: list[SparseProbe] = Field(default_factory=list[SparseProbe])
    interventions: list[str]
    run: str | None
    first_left_out: bool = False
    dominant: DominantToken | None = None
    vector: VectorCard | None = None
    replaced: str | None = None
    applied: AppliedProbe | None = None
    directions: list[AppliedLayer] = Field(default_factory=list[AppliedLayer])
    rows: list[ScoredRow] = Field(default_factory=list[ScoredRow])


class TrainProbeAnswer(TableAnswer):
    """Accuracies by layer with their controls."""
