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
        "Ask a model what one of its hidden states, or a vector, means: puts it into a target prompt in place"
        " of one token's state, layer by layer, and compares what the model then says with the unpatched "
        "target. The default target makes it repeat a token; 'Syria: a country\\nx' with target_position "
        '{"text": "x"} and max_new_tokens makes it describe one. Silence does not prove absence.'
    ),
    examples=[
        {"source_prompts": "The capital of France is"},
        {"source_prompts": "The capital of France", "source_layers": [1, 2], "max_new_tokens": 2},
    ],
    params=PatchscopeParams,
    digest=digest,
    figure=figure,
)
