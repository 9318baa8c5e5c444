"""Log-probabilities of given texts, which tell how fluent a text is to a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch

from nnterp_mcp.engine.forward import NOTHING, LogitReduction, forward
from nnterp_mcp.engine.readouts.reductions import gather_log_probs, split_rows
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch


def score_texts(
    model: StandardizedTransformer, work: Workload, begins: Sequence[int] | None = None
) -> list[list[float]]:
    """The log-probability of each token of given texts, given the tokens before it.

    A text that a model finds likely need not make sense, nor be what the model would write: repetition is likely.

    Args:
        work: The texts, with the operations under which they are scored.
        begins: For each text the position of the first token that is scored; 1 by default, since nothing comes before
            token 0.

    Returns:
        For each text the log-probabilities, in nats, from that position on.
    """
    begins = begins or [1] * len(work.prompts)

    def run(batch: Batch, numbers: Sequence[int]) -> list[list[float]]:
        ids = [prompt.ids[begins[number] :] for prompt, number in zip(batch.prompts, numbers, strict=True)]
        counts = [len(tokens) for tokens in ids]
        if not any(counts):
            return [[] for _ in numbers]
        entries = [(row, begins[number] - 1 + at) for row, number in enumerate(numbers) for at in range(counts[row])]
        tokens = torch.tensor([token for some in ids for token in some])
        reduction = LogitReduction(gather_log_probs, {"tokens": tokens})
        found = forward(model, batch, work.plan, logits=entries, reduction=reduction).numbers
        return [part["log_probs"].tolist() for part in split_rows(found, counts)]

    return work.run(model, run, unit="texts")


def score_continuations(
    model: StandardizedTransformer, work: Workload, continuations: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The log-probability of each token of continuations of prompts, under the model without any intervention.

    Args:
        work: The prompts; one can stand there several times.
        continuations: The tokens that continue each of them.
    """
    whole = [replace(prompt, ids=[*prompt.ids, *ids]) for prompt, ids in zip(work.prompts, continuations, strict=True)]
    return score_texts(model, replace(work, prompts=whole, plan=NOTHING), [len(prompt.ids) for prompt in work.prompts])


def perplexity(log_probs: Sequence[float]) -> float:
    """The exponential of the mean negative log-probability; 1 for a text that could not have been another."""
    return math.exp(min(-fmean(log_probs), 700.0))
