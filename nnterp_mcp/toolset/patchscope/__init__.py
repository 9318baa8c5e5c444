"""The tool `patchscope`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.patchscope.answer import digest
from nnterp_mcp.toolset.patchscope.figure import figure
from nnterp_mcp.toolset.patchscope.params import PatchscopeParams

SPEC = ToolSpec(
    name="patchscope",
    title="Patchscope",
    description=(
        "What a hidden state, or a vector, means to the model: puts it into a target prompt, layer by layer, and reads "
        "what the model says there, beside the unpatched target. The default target makes it repeat a token; 'Syria: a "
        'country\\nx\' with target_position {"text": "x"} and max_new_tokens makes it describe one. Silence proves no '
        "absence."
    ),
    params=PatchscopeParams,
    digest=digest,
    figure=figure,
)
