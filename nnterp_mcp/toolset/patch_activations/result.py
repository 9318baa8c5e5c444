"""Result and answer of `patch_activations`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import Measured, ProfiledAnswer, Result, ResultPart

EVERYWHERE = "all"
"""The label of the span that an ablation takes where no positions are chosen."""


def position_of(label: str) -> int | str:
    """A span's position, or its label where it has several."""
    return int(label) if label.isdigit() else label


class GridColumn(ResultPart):
    """A column of the grid: tokens, as they stand in the first pair, or a head.

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
        site: Where in the layer.
        layer: The layer.
        column: Which column, from 0.
        position: The position, or the span's label; None for a head.
        head: The head; None where all are patched.
        metric: The metric of the patched run.
        recovery: Where that lies between the corrupted run (0) and the clean one (1).
        effect: By how much it moves the metric of the run that is patched; exactly 0 where both runs have the same
            states.
    """

    site: str
    layer: int
    column: int
    position: int | str | None = None
    head: int | None = None
    metric: Measured
    recovery: Measured | None
    effect: float


class Together(ResultPart):
    """The strongest cells patched together, and random ones in their place.

    Attributes:
        cells: How many cells.
        metric: The metric.
        recovery: Where that lies between the corrupted run and the clean one.
        controls: The metric under each random set, in the mean over prompts.
        control_recoveries: Where these lie; empty where recovery is not defined.
    """

    cells: int
    metric: Measured
    recovery: Measured | None
    controls: list[float]
    control_recoveries: list[float]


class PatchActivationsResult(Result):
    """Every cell of the grid.

    Attributes:
        model: The model's handle.
        direction: Which run was patched.
        metric: What was measured.
        corruption: How the corrupted runs came about, in words.
        receivers: Where paths end, in words; None where every path counts.
        window: How many adjacent layers a cell stands for.
        in_force: The operations in force in both runs.
        prompts: Clean prompts.
        texts: The first of them, and its corrupted prompt where there is one.
        draws: Draws of noise for each; 1 without noise.
        clean: The metric of the clean runs.
        corrupted: That of the corrupted ones; None for zeros and means.
        by_head: Whether columns are heads.
        columns: The columns.
        categories: The target tokens of the first prompt, by category.
        shared: The tokens that categories share, under `a and b`.
        cells: The cells, by site, layer and column.
        together: The control; None unless it was asked for and there is something to compare.
    """

    model: str
    direction: str
    metric: str
    corruption: str
    receivers: str | None
    window: int = 1
    in_force: list[str] = Field(default_factory=list)
    prompts: int
    texts: list[str] = Field(default_factory=list)
    draws: int
    clean: Measured
    corrupted: Measured | None
    by_head: bool
    columns: list[GridColumn]
    categories: dict[str, list[str]]
    shared: dict[str, list[str]]
    cells: list[PatchedCell]
    together: Together | None


class PatchActivationsAnswer(ProfiledAnswer):
    """The strongest cells, and where they are by layer."""

    clean: Annotated[float, Field(description="The metric of the clean run.")]
    corrupted: Annotated[float | None, Field(description="That of the corrupted run.")] = None
