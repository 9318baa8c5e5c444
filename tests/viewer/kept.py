"""Runs that a test writes itself: texts that no tokenizer here holds, and more tokens than a quick model reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from nnterp_mcp.runs.records import RunRecord
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.toolset import specs
from tests import recorded_runs as runs

MARKUP = '<img src=x onerror="alert(1)">'
CLOSING = "</script><script>alert(2)</script>"


def lens_run(store: RunStore, tokens: Sequence[str], layers: int = 2) -> RunRecord:
    """A finished run of `logit_lens` that reads every token as itself, one position for each."""
    readings = [
        {
            "prompt": 0,
            "text": "".join(tokens),
            "position": position,
            "token": token,
            "leads_from": 0,
            "layers": [_layer(layer, token) for layer in range(layers)],
        }
        for position, token in enumerate(tokens)
    ]
    result = specs()["logit_lens"].result.model_validate(
        {
            "model": "tiny",
            "last_layer": layers - 1,
            "categories": {},
            "shared": {},
            "interventions": [],
            "readings": readings,
        }
    )
    return runs.done(store, result.model_dump_json().encode(), tool="logit_lens")


def _layer(layer: int, token: str) -> dict[str, object]:
    return {"layer": layer, "top": [[token, 0.75], ["b", 0.25]], "entropy": 0.5, "kl": 0.0, "targets": []}


def attention_run(store: RunStore, pattern: Float[np.ndarray, "head query key"]) -> RunRecord:
    """A finished run of `attention_probs` that kept a pattern for each head of layer 0, over tokens `t0`, `t1`, …"""
    heads, tokens, _ = pattern.shape
    masses = dict.fromkeys(("entropy", "first", "previous", "itself", "duplicate", "induction", "sink"), 0.5)
    readings = [
        {"layer": 0, "head": head, "mean": masses, "deviation": None, "kinds": None, "pairs": []}
        for head in range(heads)
    ]
    result = specs()["attention_probs"].result.model_validate(
        {
            "model": "tiny",
            "prompts": 1,
            "tokens": [[f"t{position}" for position in range(tokens)]],
            "without_attention": {},
            "interventions": [],
            "unscored": None,
            "copying": None,
            "heads": readings,
            "queries": [],
        }
    )
    record = runs.done(store, result.model_dump_json().encode(), tool="attention_probs")
    positions = list(range(tokens))
    axes = {"head": [f"L0H{head}" for head in range(heads)], "query": positions, "key": positions}
    record = record.model_copy(
        update={"arrays": {"attention": store.write_array(record.id, "attention", pattern, axes)}}
    )
    store.write(record)
    return record


def attribution_run(store: RunStore, heads: Float[np.ndarray, "layer head"]) -> RunRecord:
    """A finished run of `attribute` that gives each head of each layer a value, and the embeddings 1."""
    parts = [{"kind": "embeddings", "value": {"mean": 1.0}}]
    parts += [
        {"kind": "head", "layer": layer, "index": head, "value": {"mean": value}}
        for layer, row in enumerate(heads.tolist())
        for head, value in enumerate(row)
    ]
    result = specs()["attribute"].result.model_validate(
        {
            "model": "tiny",
            "method": "direct",
            "by": "head",
            "metric": "logit_difference",
            "prompts": ["a"],
            "categories": {"a": ["a"]},
            "shared": {},
            "in_force": [],
            "whole": {"mean": float(heads.sum()) + 1},
            "error": 0.0,
            "parts": parts,
            "total": len(parts),
            "shown": 3,
        }
    )
    return runs.done(store, result.model_dump_json().encode(), tool="attribute")
