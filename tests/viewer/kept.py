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


def circuit_run(store: RunStore, edges: Sequence[tuple[str, str, float]]) -> RunRecord:
    """A finished run of `find_circuit` with a circuit of these edges, each of a sender, a receiver and a score."""
    whole = {"edges": 100, "share": 1.0, "faithfulness": {"mean": 1.0}, "randoms": []}
    small = {"edges": len(edges), "share": len(edges) / 100, "faithfulness": {"mean": 0.8}, "randoms": [0.0, 0.1]}
    result = specs()["find_circuit"].result.model_validate(
        {
            "model": "tiny",
            "metric": "logit_difference",
            "corruption": "corrupted prompts",
            "texts": ["a", "b"],
            "scored": [0],
            "measured": [0],
            "steps": 5,
            "total": 100,
            "clean": {"mean": 2.0},
            "corrupted": {"mean": -1.0},
            "categories": {"a": ["a"], "b": ["b"]},
            "shared": {},
            "curve": [small, whole],
            "under": 0.9,
            "from_one": 0.1,
            "circuit": 0,
            "edges": [
                {"sender": sender, "receiver": receiver, "score": score, "effect": score}
                for sender, receiver, score in edges
            ],
            "parts": [{"layer": 0, "head": 1, "edges": 3, "score": 3.0}],
            "agreement": 1.0,
            "pearson": 1.0,
        }
    )
    return runs.done(store, result.model_dump_json().encode(), tool="find_circuit")
