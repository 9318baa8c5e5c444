"""The tool `logit_lens`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.logit_lens.answer import digest
from nnterp_mcp.toolset.logit_lens.figure import figure
from nnterp_mcp.toolset.logit_lens.params import LogitLensParams

SPEC = ToolSpec(
    name="logit_lens",
    title="Logit lens",
    description=(
        "See at which depth a model settles on its next token: reads the residual stream after each layer through the "
        "final norm and the head. Gives top tokens, entropy and KL(last layer || layer) in nats, and the probability "
        "and rank of target strings. At the last layer it is the model's own output, exactly. Early layers may write "
        "in a basis that the lens cannot read, so a flat distribution there proves nothing."
    ),
    examples=[
        {"prompts": "The capital of France is"},
        {
            "prompts": ["The capital of France is", "The capital of Italy is"],
            "layers": "1:",
            "positions": [0, -1],
            "targets": {"capital": ["Paris", "Rome"]},
        },
    ],
    params=LogitLensParams,
    digest=digest,
    figure=figure,
)
