"""Runs prompts, or rows of one prompt, batch by batch; a batch that would not fit the memory, or does not, is split.

Estimating comes first, for a host that runs out of memory does not say so: its kernel ends the process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache

from nnterp_mcp.errors import OutOfMemory
from nnterp_mcp.model.memory import free, is_out_of_memory, of_pass
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.context_lengths import lengths_of
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt, fill_batches
from nnterp_mcp.model.wrapped import WrappedModel

T = TypeVar("T")
Row = TypeVar("Row")


def make_batches(
    model: WrappedModel,
    prompts: Sequence[EncodedPrompt],
    batch_tokens: int,
    *,
    batch_size: int | None = None,
    new_tokens: int = 0,
    padded: bool = True,
) -> list[Batch]:
    """Packs prompts into batches whose rows the model computes as it computes each alone.

    Args:
        model: The model.
        prompts: The prompts.
        batch_tokens: Padded tokens in a batch, at most.
        batch_size: Prompts in a batch, at most; no bound by default.
        new_tokens: How many tokens are to follow each prompt.
        padded: Whether prompts of different lengths may share a batch, where the model allows it.
    """
    lengths = lengths_of(model.module)
    return fill_batches(
        prompts,
        batch_tokens,
        model.pad_id,
        model.device,
        pad=padded and model.can("batch"),
        batch_size=batch_size,
        share=lambda length, other: lengths.share(length, other, new_tokens),
    )


def run_batches(
    model: StandardizedTransformer,
    prompts: Sequence[EncodedPrompt],
    batch_tokens: int,
    run: Callable[[Batch], T],
    *,
    batch_size: int | None = None,
    patterns: bool = False,
    new_tokens: int = 0,
    padded: bool = True,
) -> Iterator[tuple[Batch, T]]:
    """Runs every prompt once, in batches that `make_batches` makes.

    Args:
        model: The model.
        prompts: The prompts.
        batch_tokens: Padded tokens in a batch, at most; fewer where they do not fit the memory.
        run: Computes a batch. It is called again with fewer rows when memory runs out, so it must leave nothing behind.
        batch_size: Prompts in a batch, at most; no bound by default.
        patterns: Whether attention patterns are formed, which grow with the square of a prompt's length.
        new_tokens: How many tokens are to follow each prompt.
        padded: Whether prompts of different lengths may share a batch, where the model allows it.

    Yields:
        Each batch that ran, with what came out.

    Raises:
        OutOfMemory: One prompt alone does not fit.
    """

    def fill(rows: Sequence[EncodedPrompt], tokens: int, size: int | None) -> list[Batch]:
        return make_batches(model, rows, tokens, batch_size=size, new_tokens=new_tokens, padded=padded)

    waiting = deque(fill(prompts, batch_tokens, batch_size))
    while waiting:
        batch = waiting.popleft()
        fits = of_pass(model, *_shape(batch), patterns) <= free(model.device)
        found = attempt(model, lambda batch=batch: run(batch)) if fits else None
        if found is not None:
            yield batch, found[0]
            continue
        rows, columns = _shape(batch)
        if rows == 1:
            raise OutOfMemory(
                f"a prompt of {columns} tokens does not fit the memory of {model.device}, even alone",
                "Shorten it, ask for fewer layers or positions, or load the model with a smaller dtype.",
            )
        half = (rows + 1) // 2
        waiting.extendleft(reversed(fill(batch.prompts, half * columns, half)))


def _shape(batch: Batch) -> tuple[int, int]:
    rows, columns = batch.inputs["input_ids"].shape
    return rows, columns


def run_halving(
    model: StandardizedTransformer,
    batches: Iterable[Sequence[Row]],
    run: Callable[[Sequence[Row]], T],
    what: str,
) -> Iterator[T]:
    """Runs batches of rows one after another; one that does not fit the memory is halved, and its halves come in order.

    Args:
        model: The model.
        batches: The rows of each batch.
        run: Computes a batch. It is called again with fewer rows when memory runs out, so it must leave nothing behind.
        what: Names a batch of one row, for the error.

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
            raise OutOfMemory(
                f"{what} does not fit the memory of {model.device}",
                "Shorten the prompt, or load the model with a smaller dtype.",
            )
        half = len(batch) // 2
        waiting.extendleft([batch[half:], batch[:half]])


def attempt(model: StandardizedTransformer, run: Callable[[], T]) -> tuple[T] | None:
    """The result of a run; None if memory ran out, with everything let go that the run held."""
    try:
        return (run(),)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    clear_device_cache(garbage_collection=True)
    return None
