"""Next-token distributions of runs, each compared with a baseline in the same batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.batching import LOGITS_AT_ONCE
from nnterp_mcp.engine.forward import LogitReduction, Plan, forward
from nnterp_mcp.engine.generation import with_baseline
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.readouts.next_token import Categories
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.readouts.reductions import compare_rows
from nnterp_mcp.engine.workload import Workload, ignore_progress
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch

ReadRuns = Iterator[tuple[Sequence[int], Data]]
"""Runs with their readings by `compare_rows`, each compared with its baseline."""

Compare = Callable[[Sequence[int]], LogitReduction]
"""Reads all rows of a batch, given the row with which each is compared."""


def comparison(top_k: int, categories: Sequence[Sequence[int]], baselines: Sequence[int]) -> LogitReduction:
    """Reads the rows of a batch with `compare_rows`.

    Args:
        top_k: Number of top tokens of each.
        categories: Token ids by category, whose probability and rank to follow.
        baselines: The row with which each row is compared.
    """
    followed = Categories.of([categories] * len(baselines), torch.device("cpu"))
    options = {"rows": torch.arange(len(baselines)), "baselines": torch.tensor(baselines), "top_k": top_k}
    return LogitReduction(compare_rows, options | {"ids": followed.ids, "real": followed.real})


def read_compared(
    model: StandardizedTransformer, work: Workload, baselines: Sequence[int], compare: Compare
) -> ReadRuns:
    """Reads the distribution after each prompt, in whole passes.

    Args:
        model: The model.
        work: The runs as prompts.
        baselines: For each run, the run with which it is compared.
        compare: The reading.
    """
    work = replace(work, batch_size=max(1, LOGITS_AT_ONCE // model.vocab_size))

    def read(batch: Batch, numbers: Sequence[int]) -> tuple[list[int], Data]:
        rows = sorted({*numbers, *(baselines[number] for number in numbers)})
        batch = work.batch(model, rows)  # a batch that begins amid a prompt's runs needs its baseline too
        ends = [(row, len(prompt.ids) - 1) for row, prompt in enumerate(batch.prompts)]
        asked = compare([rows.index(baselines[run]) for run in rows])
        return rows, forward(model, batch, work.plan, logits=ends, reduction=asked).numbers

    return (found for _, found in work.run_batches(model, read))


@torch.inference_mode()
def measure_divergences(
    model: StandardizedTransformer, work: Workload, others: Sequence[Plan]
) -> Float[Tensor, "plan prompt"]:
    """KL(edited ‖ unedited) of the next token's distribution, in nats; on the CPU.

    Args:
        model: The model.
        work: The prompts; their operations are the first plan.
        others: Further plans.
    """
    runs, count = replace(with_baseline(work, others), progress=ignore_progress), len(work.prompts)
    found = torch.zeros(len(runs.prompts))
    baselines = [run % count for run in range(len(runs.prompts))]
    for rows, numbers in read_compared(model, runs, baselines, partial(comparison, 1, [])):
        require_finite(numbers["total"], "logits")
        found[list(rows)] = numbers["kl"].cpu()
    return found.unflatten(0, (-1, count))[1:]
