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
        "Test a claim that components drive a behaviour, on prompts that did not serve to find it: necessity, "
        "sufficiency, dose response and specificity against matched random components, and a verdict. Effects are "
        "shares of the clean-corrupted gap."
    ),
    examples=[
        {
            "claim": ["L1H2"],
            "clean": ["The capital of France is", "The capital of Italy is"],
            "corrupted": ["The capital of Spain is", "The capital of Japan is"],
            "targets": {"answer": "Paris", "wrong": "Madrid"},
            "found_on": "theory",
        },
        {
            "claim": [{"site": "mlps_output", "layers": 1}],
            "clean": [f"The capital of {country} is" for country in ("France", "Italy", "Spain", "Japan", "China")],
            "corrupted": {"ablate": "resample"},
            "targets": {"answer": "Paris", "wrong": "Madrid"},
            "found_on": ["The capital of France is"],
            "control_prompts": ["one two three", "two one three"],
        },
    ],
    params=VerifyClaimParams,
    digest=digest,
    figure=figure,
    group="causal",
)
