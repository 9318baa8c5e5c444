"""Runs batches of rows; one for which memory runs out is halved."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache

from nnterp_mcp.engine.executors.short_passes import drop_graphs
from nnterp_mcp.errors import OutOfMemory
from nnterp_mcp.model.memory import is_out_of_memory
from nnterp_mcp.model.standardized import StandardizedTransformer

T = TypeVar("T")
Row = TypeVar("Row")

LOGITS_AT_ONCE = 1 << 24
"""Logits held at one time: rows run in batches of this many over the vocabulary."""

_TOKENS_PER_ROW = 8
"""A decode step gains little from more rows than one for so many tokens of the largest pass."""


def rows_at_most(batch_tokens: int, vocab_size: int) -> int:
    """The most rows of a decode step, from the tokens of the largest pass and the logits of a row."""
    return max(1, min(batch_tokens // _TOKENS_PER_ROW, LOGITS_AT_ONCE // vocab_size))


def run_halving(
    model: StandardizedTransformer,
    batches: Iterable[Sequence[Row]],
    run: Callable[[Sequence[Row]], T],
    name: str | Callable[[Row], str],
) -> Iterator[T]:
    """Runs batches of rows one after another; one that does not fit the memory is halved, and its halves come in order.

    Args:
        batches: The rows of each batch.
        run: Computes a batch. It is called again with fewer rows when memory runs out, so it must have no side effects.
        name: Names a row that does not fit alone, for the error.

    Raises:
        OutOfMemory: One row alone does not fit.
    """
    waiting = deque(batches)
    while waiting:
        batch = waiting.popleft()
        found = attempt(model, lambda batch=batch: run(batch))
        if found is not None:
            yield found[0]
            continue
        if len(batch) == 1:
            row = name if isinstance(name, str) else name(batch[0])
            raise OutOfMemory(
                f"{row} does not fit the memory of {model.device}, even alone",
                "Shorten it, ask for fewer layers or positions, or load the model with a smaller dtype.",
            )
        half = len(batch) // 2
        waiting.extendleft([batch[half:], batch[:half]])


def attempt(model: StandardizedTransformer, run: Callable[[], T]) -> tuple[T] | None:
    """The result of a run, in a tuple; None if memory ran out, after freeing what the run had allocated."""
    try:
        return (run(),)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    drop_graphs(model)
    clear_device_cache(garbage_collection=True)
    return None
