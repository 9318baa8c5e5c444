"""The columns of a patching grid by the first pair of prompts: heads or tokens, and where heads are patched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnterp_mcp.experiments.patching.activation_patching import Cell, Grid
from nnterp_mcp.experiments.patching.alignment import Span
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.formatting import ranges
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.model.text.tokens import span_text
from nnterp_mcp.toolset.patch_activations.result import GridColumn


def texts_of(pair: Pair) -> list[str]:
    """The clean prompt, and the corrupted one unless noise or an ablation stands for it."""
    other = pair.corrupted
    return [pair.clean.prompt.text, *([] if other is None or other.noise is not None else [other.prompt.text])]


def columns_of(grid: Grid, pair: Pair, tokenizer: Any) -> list[GridColumn]:
    """The columns: heads, or the spans of the first pair with their tokens."""
    if grid.by_unit:
        return [GridColumn(label=str(head)) for head in sorted({cell.column for cell in grid.cells if not cell.whole})]
    return [_column(span, pair, tokenizer) for span in grid.spans[0]]


def label_of(grid: Grid, cell: Cell) -> str | None:
    """The label of a cell's column; None for a whole site."""
    if cell.whole:
        return None
    return str(cell.column) if grid.by_unit else grid.spans[0][cell.column].label


def patched_at(grid: Grid, prompt: EncodedPrompt) -> str:
    """The positions of the first prompt at which heads are patched, in words."""
    positions = sorted({at for span in grid.spans[0] for at in span.clean})
    if len(positions) == len(prompt.ids):
        return "all positions"
    last = " (the last)" if positions == [len(prompt.ids) - 1] else ""
    return f"position{'s' if len(positions) > 1 else ''} {ranges(positions)}{last}"


def _column(span: Span, pair: Pair, tokenizer: Any) -> GridColumn:
    def tokens(prompt: EncodedPrompt, positions: Sequence[int]) -> str:
        return span_text(tokenizer, [prompt.ids[at] for at in positions])

    other = pair.corrupted
    corrupted = None if other is None or other.noise is not None else tokens(other.prompt, span.corrupted)
    return GridColumn(label=span.label, clean=tokens(pair.clean.prompt, span.clean), corrupted=corrupted)
