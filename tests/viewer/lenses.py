"""Runs of the lens whose texts are chosen by a test: what a page must show, whatever a tokenizer holds."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.session.records import RunRecord
from nnterp_mcp.session.store import RunStore
from nnterp_mcp.toolset import specs
from tests.session import runs

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
