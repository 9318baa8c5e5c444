"""Result and answer of `patch_activations`."""

from __future__ import annotations

from pydantic import Field

from nnterp_mcp.contract import Measured, ProfiledAnswer, Result, ResultPart
from nnterp_mcp.formatting import elided, quoted

EVERYWHERE = "all"
"""The label of the span that an ablation takes where no positions are chosen."""


def position_of(label: str) -> int | str:
    """A span's position, or its label where it has several."""
    return int(label) if label.isdigit() else label


def name_cell(site: str, layer: int, label: str | None, by_head: bool) -> str:
    """A cell as answers name it: L23H4, or "mlps_output L3@4" with the position or label behind the layer, if any."""
    if label is None:
        return f"{site} L{layer}"
    if not by_head:
        return f"{site} L{layer}@{label}"
    return f"L{layer}H{label}" if site == "heads_output" else f"{site} L{layer}H{label}"


class GridColumn(ResultPart):
    """A column of the grid: tokens of the first pair, or a head.

    Attributes:
        label: The position, the span's label, or the head.
        clean: The clean prompt's tokens; None for a head.
        corrupted: The corrupted prompt's; None for a head, or without such a prompt.
    """

    label: str
    clean: str | None = None
    corrupted: str | None = None


class PatchedCell(ResultPart):
    """One cell of the grid.

    Attributes:
        site: The site in the layer.
        layer: The layer.
        column: The column, from 0.
        position: The position, or the span's label; None for a head.
        head: The head; None where all are patched.
        metric: The metric of the patched run.
        recovery: Its place between the corrupted run (0) and the clean one (1).
        effect: The change of the metric of the run that is patched; exactly 0 where both runs have the same states.
        by_construction: The metric follows from what is replaced, such as the last layer's output at the last position.
    """

    site: str
    layer: int
    column: int
    position: int | str | None = None
    head: int | None = None
    metric: Measured
    recovery: Measured | None
    effect: float
    by_construction: bool = False


class MemberLoss(ResultPart):
    """The share of the metric that a circuit loses with one of its cells."""

    cell: str
    loss: Measured


class CircuitScores(ResultPart):
    """The share of the metric that parts of a grid carry alone: 0 with no cell intact, 1 with all.

    Attributes:
        total: The cells of the grid.
        intact: The metric with all cells intact.
        none: The metric with none intact.
        faithfulness: The share with the set alone intact.
        completeness: The share with all but the set intact.
        random_faithfulness: The faithfulness of each random set.
        random_completeness: Their completeness.
    """

    total: int
    intact: Measured
    none: Measured
    faithfulness: Measured
    completeness: Measured
    random_faithfulness: list[float]
    random_completeness: list[float]


class PatchedSet(ResultPart):
    """Cells or features patched together, and random sets of as many.

    Attributes:
        named: The call names the cells; else they are those with the largest effects of one sign.
        cells: Their names.
        metric: The metric.
        recovery: Its place between the corrupted run and the clean one.
        matched: Every random set has as many cells of each site and layer; else the nearest layers filled up.
        controls: The metric under each random set, in the mean over prompts; empty where there are too few cells.
        control_recoveries: Their recoveries; empty where recovery is not defined.
        circuit: The set as a circuit of the whole grid, where that was asked for and is defined.
        dictionary: The dictionary, where they are features; random sets are then of features about as active.
        directions: Of features, the metric where the states move as far along each random direction.
        direction_recoveries: Their recoveries.
    """

    named: bool
    cells: list[str]
    metric: Measured
    recovery: Measured | None
    matched: bool
    controls: list[float]
    control_recoveries: list[float]
    circuit: CircuitScores | None = None
    dictionary: str | None = None
    directions: list[float] = Field(default_factory=list[float])
    direction_recoveries: list[float] = Field(default_factory=list[float])


class PatchActivationsResult(Result):
    """Every cell of the grid, or a set of them.

    Attributes:
        model: The model's handle.
        direction: The run that was patched.
        metric: The metric.
        corruption: The origin of the corrupted runs or of the states of an ablation, in words.
        receivers: The ends of paths, in words; None where every path counts.
        through_mlps: MLPs on such paths were recomputed; else frozen as attention was.
        window: The adjacent layers that a cell stands for.
        in_force: The operations in both runs.
        prompts: Clean prompts.
        texts: The first of them, and its corrupted prompt where there is one.
        draws: Draws of noise for each; 1 without noise.
        clean: The metric of the clean runs.
        corrupted: That of the corrupted ones; None for zeros and means.
        by_head: Columns are heads.
        at: The positions at which heads are patched, in words.
        columns: The columns.
        categories: The target tokens of the first prompt, by category.
        shared: The tokens that categories share, under `a and b`.
        cells: The cells, by site, layer and column; none where the call names a set.
        patched_set: The named set, or the control; None unless one was asked for and there are such cells.
        members: The faithfulness that a circuit loses with each of its cells.
    """

    model: str
    direction: str
    metric: str
    corruption: str
    receivers: str | None
    through_mlps: bool = True
    window: int = 1
    in_force: list[str] = Field(default_factory=list)
    prompts: int
    texts: list[str] = Field(default_factory=list)
    draws: int
    clean: Measured
    corrupted: Measured | None
    by_head: bool
    at: str = ""
    columns: list[GridColumn]
    categories: dict[str, list[str]]
    shared: dict[str, list[str]]
    cells: list[PatchedCell]
    patched_set: PatchedSet | None = None
    members: list[MemberLoss] = Field(default_factory=list)

    @property
    def unpatched(self) -> Measured:
        """The metric of the run that is patched."""
        denoising = self.direction == "denoising" and self.corrupted is not None
        return self.corrupted if denoising and self.corrupted is not None else self.clean

    @property
    def recovers(self) -> bool:
        """Recovery is defined."""
        found = self.cells[0].recovery if self.cells else self.patched_set and self.patched_set.recovery
        return self.corrupted is not None and found is not None

    @property
    def paths(self) -> str:
        """The paths along which patches act, in words; empty for all."""
        if self.receivers is None:
            return ""
        frozen = "attention frozen, MLPs recomputed" if self.through_mlps else "attention and MLPs frozen"
        way = "direct paths" if self.through_mlps else "the residual stream alone"
        return f"through {way} to {self.receivers} ({frozen})"


class PatchActivationsAnswer(ProfiledAnswer):
    """The strongest cells and all layers, or the measures of a set."""

    clean: float
    corrupted: float | None = None


def effect_name(result: PatchActivationsResult) -> str:
    """The name of that number."""
    return "recovery" if result.recovers else metric_column(result)


def metric_name(result: PatchActivationsResult) -> str:
    """The metric, with its categories."""
    names = [quoted(elided(name)) for name in result.categories][:2]
    if result.metric == "logit_difference":
        return f"logit difference ({' − '.join(names)})"
    return f"log-probability of {names[0]}" if result.metric == "log_probability" else "KL(clean ‖ patched)"


def metric_column(result: PatchActivationsResult) -> str:
    """The metric as the head of a column; a divergence with its direction."""
    return "KL(clean ‖ patched)" if result.metric == "kl" else result.metric
