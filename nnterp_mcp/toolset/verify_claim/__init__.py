"""The tool `verify_claim`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.verify_claim.answer import digest
from nnterp_mcp.toolset.verify_claim.figure import figure
from nnterp_mcp.toolset.verify_claim.params import VerifyClaimParams

SPEC = ToolSpec(
    name="verify_claim",
    title="Verify a claim",
    description=(
        "Test on held-out prompts that a component drives a behaviour: necessity, sufficiency, dose response and "
        "specificity against random ones, and a verdict."
    ),
    examples=[
        {
            "claim": ["L1H2"],
            "clean": [f"The {word} of France" for word in ("capital", "king", "people", "president")],
            "corrupted": {"replace": "France", "with": "Spain"},
            "targets": {"answer": "Paris", "wrong": "Madrid"},
            "found_on": ["theory"],
        },
        {
            "claim": ["mlps_output L1@country"],
            "clean": [f"The capital of France {word}" for word in ("is", "and", "of", "that", "France")],
            "corrupted": {"replace": "capital of France", "with": "capital of Spain"},
            "found_on": ["The capital of France is"],
            "positions": {"country": -2},
            "predicts": "necessary",
        },
    ],
    params=VerifyClaimParams,
    digest=digest,
    figure=figure,
    group="causal",
)
