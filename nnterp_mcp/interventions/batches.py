"""Runs prompts batch by batch; one that does not fit the memory is split and tried again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from nnterp_mcp.errors import OutOfMemory
from nnterp_mcp.model.memory import is_out_of_memory, release
from nnterp_mcp.model.prompts import Batch, EncodedPrompt, fill_batches
from nnterp_mcp.model.standardized import StandardizedTransformer

T = TypeVar("T")


def run_batches(
    model: StandardizedTransformer,
    prompts: Sequence[EncodedPrompt],
    batch_tokens: int,
    run: Callable[[Batch], T],
    *,
    batch_size: int | None = None,
) -> Iterator[tuple[Batch, T]]:
    """Runs every prompt once, in batches that `fill_batches` makes.

    Args:
        model: The model.
        prompts: The prompts.
        batch_tokens: Padded tokens in a batch, at most; fewer where they do not fit the memory.
        run: Computes a batch. It is called again with fewer rows when memory runs out, so it must leave nothing behind.
        batch_size: Prompts in a batch, at most; no bound by default.

    Yields:
        Each batch that ran, with what came out.

    Raises:
        OutOfMemory: One prompt alone does not fit.
    """

    def fill(rows: Sequence[EncodedPrompt], tokens: int, size: int | None) -> list[Batch]:
        return fill_batches(rows, tokens, model.pad_id, model.device, pad=model.can("batch"), batch_size=size)

    waiting = deque(fill(prompts, batch_tokens, batch_size))
    while waiting:
        batch = waiting.popleft()
        found = _attempt(batch, run)
        if found is not None:
            yield batch, found[0]
            continue
        release(model.device)
        rows, columns = batch.inputs["input_ids"].shape
        if rows == 1:
            raise OutOfMemory(
                f"a prompt of {columns} tokens does not fit the memory of {model.device}, even alone",
                "Shorten it, ask for fewer layers or positions, or load the model with a smaller dtype.",
            )
        half = (rows + 1) // 2
        waiting.extendleft(reversed(fill(batch.prompts, half * columns, half)))


def _attempt(batch: Batch, run: Callable[[Batch], T]) -> tuple[T] | None:
    """What came out; None when memory ran out, with everything let go that the attempt held."""
    try:
        return (run(batch),)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
