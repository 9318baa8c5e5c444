"""The prompts of a request, run batch by batch: filled by length, halved when memory runs out, in order at the end.

The memory of a batch is estimated before it runs, for a host that runs out of memory does not say so: its kernel ends
the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.engine.batching import rows_at_most, run_halving
from nnterp_mcp.engine.executors.remote import executed_remotely
from nnterp_mcp.engine.executors.short_passes import bucket
from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.model.memory import free, of_cached_token, of_pass
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.context_lengths import lengths_of
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt, group_by_length, pad_batch
from nnterp_mcp.model.wrapped import WrappedModel

T = TypeVar("T")

ReportProgress = Callable[[int, int | None, str], None]
"""Called with what is done, with the total where it is known, and with the unit ("prompts"). Raises to end the work."""


def ignore_progress(done: int, total: int | None, unit: str) -> None:
    """Reports to nobody."""


@dataclass(frozen=True)
class Workload:
    """Prompts, with the operations on them, the size of their batches, and where progress is reported.

    Attributes:
        prompts: The prompts.
        plan: The operations, planned for the request that the prompts belong to.
        batch_tokens: The most tokens of a pass, padding included; a longer prompt runs alone.
        progress: Called after each batch.
        batch_size: The most prompts of a batch.
        new_tokens: How many tokens are generated after each prompt.
        padded: Prompts of different lengths share a batch, where the model allows it.
        in_parts: Prompts after which text is generated are read in as many passes as they need, so that only the memory
            for their keys and values bounds a batch. Otherwise they are read in one.
    """

    prompts: Sequence[EncodedPrompt]
    plan: Plan = NOTHING
    batch_tokens: int = 4096
    progress: ReportProgress = ignore_progress
    batch_size: int | None = None
    new_tokens: int = 0
    padded: bool = True
    in_parts: bool = True

    def some(self, numbers: Sequence[int]) -> Workload:
        """The same for some of the prompts.

        Args:
            numbers: Indices into `prompts`.
        """
        return replace(self, prompts=[self.prompts[number] for number in numbers])

    def split(self, model: WrappedModel) -> list[list[int]]:
        """The batches, as indices into `prompts`: each prompt is computed in its batch as it is computed alone."""
        lengths, new = lengths_of(model.module), self.new_tokens
        most, more = self.batch_tokens, 0
        if new and self.in_parts:
            most, more = tokens_cached(model), new
        rows = rows_at_most(self.batch_tokens, model.vocab_size) if new else None
        return group_by_length(
            [len(prompt.ids) + more for prompt in self.prompts],
            most,
            pad=self.padded and model.can("batch"),
            batch_size=self.batch_size or rows,
            share=lambda length, other: lengths.share(length - more, other - more, new),
        )

    def batch(self, model: WrappedModel, numbers: Sequence[int]) -> Batch:
        """Some of the prompts, padded to one length.

        Args:
            numbers: Indices into `prompts`.
        """
        prompts = [self.prompts[number] for number in numbers]
        longest = max(len(prompt.ids) for prompt in prompts)
        width = longest if self.plan or self.new_tokens else bucket(model, len(prompts), longest)
        return pad_batch(prompts, model.pad_id, model.device, width)

    def batches(self, model: WrappedModel) -> list[Batch]:
        """All prompts in batches."""
        return [self.batch(model, numbers) for numbers in self.split(model)]

    def run(
        self,
        model: StandardizedTransformer,
        compute: Callable[[Batch, Sequence[int]], Iterable[T]],
        *,
        patterns: bool = False,
        unit: str = "prompts",
    ) -> list[T]:
        """Runs every prompt once, and returns what came of each, in the order of the prompts.

        Args:
            compute: Computes a batch, given the index of each row in `prompts`; returns one value for each row. When
                memory runs out it is called again with fewer rows, so it must have no other lasting effect.
            patterns: Attention patterns are formed, which grow with the square of a prompt's length.
            unit: What the prompts are called in the progress.

        Raises:
            OutOfMemory: One prompt alone does not fit.
            NnterpError: The call was cancelled.
        """
        found: dict[int, T] = {}
        for numbers, values in self.run_batches(model, compute, patterns=patterns, unit=unit):
            found |= zip(numbers, values, strict=True)
        return [found[number] for number in range(len(self.prompts))]

    def run_batches(
        self,
        model: StandardizedTransformer,
        compute: Callable[[Batch, Sequence[int]], T],
        *,
        patterns: bool = False,
        unit: str = "prompts",
    ) -> Iterator[tuple[Sequence[int], T]]:
        """Does what `run` does, for callers that use each batch as it comes.

        Yields:
            The indices of the prompts of a batch, with what `compute` returned. Progress is reported when the next
            batch is asked for.
        """

        def run(numbers: Sequence[int]) -> tuple[Sequence[int], T]:
            check_cancelled()
            batch = self.batch(model, numbers)
            rows, columns = batch.inputs["input_ids"].shape
            if not self.new_tokens:  # a generation checks each pass in which it reads prompts
                check_memory(model, rows, columns, patterns)
            return numbers, compute(batch, numbers)

        def name(number: int) -> str:
            return f"a prompt of {len(self.prompts[number].ids)} tokens"

        done = 0
        for numbers, found in run_halving(model, self.split(model), run, name):
            yield numbers, found
            done += len(numbers)
            self.progress(done, len(self.prompts), unit)


def tokens_cached(model: WrappedModel) -> int:
    """The number of tokens whose keys and values fit half of the memory that is free."""
    return free(model.device) // 2 // of_cached_token(model)


@executed_remotely
def check_memory(model: StandardizedTransformer, rows: int, columns: int, patterns: bool) -> None:
    """Raises before a pass for which the memory is estimated not to suffice.

    Args:
        rows: Prompts in the batch.
        columns: Tokens of each.
        patterns: True if attention probabilities are formed.

    Raises:
        torch.OutOfMemoryError: The pass is estimated to need more than is free.
    """
    if of_pass(model, rows, columns, patterns) > free(model.device):
        raise torch.OutOfMemoryError("estimated to be too large")
