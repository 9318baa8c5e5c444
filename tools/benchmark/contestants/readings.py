"""The numbers by which contestants are compared, from whole distributions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..workloads import ANSWER

TOP = 3


def describe(logits: Tensor) -> list[float]:
    """The probabilities of the top tokens and the entropy in nats of each row, in float64."""
    return [number for rows in logits.flatten(0, -2).split(64) for number in _describe(rows.double())]


def describe_probs(probs: Tensor) -> list[float]:
    """The same, of probabilities."""
    return describe(probs.clamp_min(1e-45).log())


def _describe(logits: Tensor) -> list[float]:
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1, keepdim=True)
    return torch.cat([log_probs.topk(TOP).values.exp(), entropy], dim=-1).flatten().tolist()


def answer_ids(tokenizer: Any) -> list[int]:
    """The first tokens of the answer with and without a leading space, each once."""
    firsts = [tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (f" {ANSWER}", ANSWER)]
    return list(dict.fromkeys(firsts))
