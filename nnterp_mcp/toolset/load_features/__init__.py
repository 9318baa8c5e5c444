"""The tool `load_features`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.load_features.answer import digest
from nnterp_mcp.toolset.load_features.params import LoadFeaturesParams

SPEC = ToolSpec(
    name="load_features",
    title="Load features",
    description=(
        "Load sparse autoencoders or transcoders under a name, checked on over 1,000 tokens: active features "
        "(L0), variance unexplained (FVU), loss recovered. A wrong hook point is reported with the one that fits."
    ),
    examples=[{"name": "d", "source": "dictionary"}],
    params=LoadFeaturesParams,
    digest=digest,
    read_only=False,
)
