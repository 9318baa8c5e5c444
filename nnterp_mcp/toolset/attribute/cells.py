"""The cells of a patching grid as parts of an attribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.contract import Measured
from nnterp_mcp.experiments.patching.activation_patching import Cell, Grid
from nnterp_mcp.experiments.patching.attribution_patching import Comparison
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.experiments.statistics.bootstrap import estimate_mean
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.toolset.attribute.result import AttributedPart, Checked

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

MOST_LISTED = 1000
"""Parts that a result lists: neurons are many; the array has all."""


def cell_name(cell: Cell) -> str:
    """A cell as the array of estimates names it."""
    return f"{cell.site} {cell.layer} {cell.column}"


def choose_listed(grid: Grid, effects: Float[Tensor, "prompt cell"], made: Mapping[int, float]) -> list[int]:
    """The cells that a result lists: the strongest, the strongest of each layer, and those that were patched."""
    order = effects.mean(0).abs().argsort(descending=True).tolist()
    of_layers = {grid.cells[at].place: at for at in reversed(order)}
    return sorted({*order[:MOST_LISTED], *of_layers.values(), *made})


def corrupted_text(pair: Pair) -> str | None:
    """The corrupted prompt, unless noise or an ablation stands for it."""
    return None if pair.corrupted is None or pair.corrupted.noise is not None else pair.corrupted.prompt.text


def describe_cells(
    grid: Grid,
    effects: Float[Tensor, "prompt cell"],
    listed: Sequence[int],
    first: EncodedPrompt,
    bench: Bench,
) -> list[AttributedPart]:
    """Cells of the grid, with their tokens as they stand in the first prompt."""
    found: list[AttributedPart] = []
    for at, estimate in zip(listed, estimate_mean(effects[:, listed]), strict=True):
        cell = grid.cells[at]
        value = Measured(mean=estimate.mean, low=estimate.low, high=estimate.high)
        part = AttributedPart(kind=cell.site, layer=cell.layer, index=cell.column, value=value)
        if not grid.by_unit:
            (position,) = grid.spans[0][cell.column].clean
            part.token = token_text(bench.model.tokenizer, first.ids[position])
        found.append(part)
    return found


def patched_effects(compared: Comparison | None) -> dict[int, float]:
    """The effects of the cells that were really patched, by their number."""
    if compared is None:
        return {}
    return dict(zip(compared.cells, compared.effects.mean(0).tolist(), strict=True))


def describe_check(compared: Comparison | None) -> Checked | None:
    """The estimates compared with real patches; None where no cell has an effect."""
    if compared is None:
        return None
    return Checked(
        cells=len(compared.cells),
        strongest=compared.strongest,
        pearson=compared.pearson,
        agreement=compared.agreement,
    )
