"""The tool `tokenize`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.tokenize.answer import digest
from nnterp_mcp.toolset.tokenize.params import TokenizeParams

SPEC = ToolSpec(
    name="tokenize",
    title="Show tokens and positions",
    description=(
        "Find positions: splits prompts into the model's tokens, with their ids and positions. In a chat, "
        '{"turn": 0} is the content of a message (with "role", among those of that role; with "text", a piece'
        ' of it), and with "part": "after" what the template writes after it. A chat that ends with the '
        'assistant\'s message is continued, unless that has "closed": true.'
    ),
    examples=[{"prompts": "The capital of France is"}],
    params=TokenizeParams,
    digest=digest,
    recorded=False,
    group="basics",
)
