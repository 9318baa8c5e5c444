"""Reductions of attention patterns in plain torch, on the machine where the model runs.

Served models are sent these functions by their source: the rules of `reductions` hold here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.readouts.reductions import expected, take_heads, take_strongest


def summarize_heads(states: Float[Tensor, "row query head key"], options: dict[str, Any]) -> dict[str, Tensor]:
    """Runs `summarize_patterns` on some `heads` of a layer, as many queries at a time as make `at_once` probabilities.

    Args:
        states: Attention probabilities of one layer.
        options: Besides, `asked` and `top_k` of `summarize_patterns`.
    """
    few = max(1, options["at_once"] // (states[:, 0, 0].numel() * len(options["heads"])))
    patterns = (take_heads(part, options) for part in states.split(few, dim=1))
    return summarize_patterns(patterns, options["asked"], options["top_k"])


def summarize_patterns(
    patterns: Iterable[Float[Tensor, "row head query key"]], asked: dict[str, Tensor], top_k: int
) -> dict[str, Tensor]:
    """The fields of `AttentionNumbers`, and `largest_sink`, which is finite where all that was read is.

    Args:
        patterns: Attention probabilities of some heads of one layer, split into runs of successive queries.
        asked: What is asked of each row: `first`, the column of its first token; `query`, the queries over which means
            are taken (row, query); `real`, the pairs of tokens that are no padding (row, query, key); `targets`, the
            pairs that count for each target (row, target, query, key); `askers`, the queries that have one (row,
            target); `rows` and `columns` of the queries that are read one by one.
        top_k: How many pairs and keys to keep.
    """
    parts: list[dict[str, Tensor]] = []
    start = 0
    for pattern in patterns:
        asked = {name: value.to(pattern.device) for name, value in asked.items()}
        parts.append(_sum_over_queries(pattern, asked, start, top_k))
        start += pattern.shape[2]
    found = {name: [part[name] for part in parts] for name in parts[0]}
    queries = asked["query"].sum(-1, keepdim=True)
    pairs, places = take_strongest(torch.cat(found["pair_probs"], -1), top_k)
    order = torch.cat(found["read"]).argsort()
    return {
        "largest_sink": torch.stack(found["largest_sink"]).amax(),
        "entropy": torch.stack(found["entropy"]).sum(0) / queries,
        "mass": torch.stack(found["mass"]).sum(0) / asked["askers"][:, None],
        "sink": torch.stack(found["sink"]).sum(0) / queries,
        "pair_probs": pairs,
        **{name: torch.cat(found[name], -1).gather(-1, places) for name in ("pair_queries", "pair_keys")},
        **{name: torch.cat(found[name])[order] for name in ("read_first", "read_probs", "read_keys")},
    }


def _sum_over_queries(
    pattern: Float[Tensor, "row head query key"], asked: dict[str, Tensor], start: int, top_k: int
) -> dict[str, Tensor]:
    """Sums over some queries, from column `start` on, their strongest pairs, and those of them that are read by
    themselves, with their numbers among all that are (`read`)."""
    some = slice(start, start + pattern.shape[2])
    first, query = asked["first"], asked["query"][:, some]
    read = ((asked["columns"] >= some.start) & (asked["columns"] < some.stop)).nonzero()[:, 0]
    rows, columns = asked["rows"][read], asked["columns"][read] - start
    pattern = torch.where(asked["real"][:, None, some], pattern.float(), 0)  # what padded queries read may be anything
    sink = (1 - pattern.sum(-1)).clamp_min(0)
    logs = pattern.clamp_min(torch.finfo(pattern.dtype).tiny).log()  # of a zero it takes six times as long
    entropy = -expected(pattern, logs) - torch.xlogy(sink, sink)
    at = torch.arange(pattern.shape[-1], device=pattern.device)
    beyond_first = pattern * (at != first[:, None])[:, None, None]
    pairs, places = take_strongest((beyond_first * query[:, None, :, None]).flatten(2), top_k)
    keys, key_places = take_strongest(beyond_first[rows, :, columns], top_k)
    return {
        "largest_sink": sink.amax(),
        "entropy": torch.where(query[:, None], entropy, 0).sum(-1),
        "mass": pattern.flatten(2) @ asked["targets"][:, :, some].float().flatten(2).mT,
        "sink": torch.where(query[:, None], sink, 0).sum(-1),
        "pair_probs": pairs,
        "pair_queries": (places // len(at) + start - first[:, None, None]).clamp_min(0),
        "pair_keys": (places % len(at) - first[:, None, None]).clamp_min(0),
        "read": read,
        "read_first": pattern[rows, :, columns, first[rows]],
        "read_probs": keys,
        "read_keys": (key_places - first[rows][:, None, None]).clamp_min(0),
    }
