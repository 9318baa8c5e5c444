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
        "What each layer would predict next if the model ended there: likeliest tokens, entropy, KL(last layer || "
        "layer), and the probability and rank of target strings; in nats. At the last layer it is the model's own "
        "output, exactly. Early layers may hold information in a basis that the lens cannot read, so a flat "
        "distribution there proves nothing."
    ),
    params=LogitLensParams,
    digest=digest,
    figure=figure,
)
