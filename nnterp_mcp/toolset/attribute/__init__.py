"""The tool `attribute`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.attribute.answer import digest
from nnterp_mcp.toolset.attribute.figure import figure
from nnterp_mcp.toolset.attribute.params import AttributeParams

SPEC = ToolSpec(
    name="attribute",
    title="Attribute an answer to parts",
    description=(
        "What gives an answer: its logit over another's (or alone), by parts. direct: what layers, heads, MLPs or "
        "neurons write; adds up exactly. gradient (× input), integrated: tokens. patching: first-order estimates of "
        "all patches, the strongest really made."
    ),
    params=AttributeParams,
    digest=digest,
    figure=figure,
)
