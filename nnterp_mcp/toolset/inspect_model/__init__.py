"""The tool `inspect_model`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.inspect_model.answer import digest
from nnterp_mcp.toolset.inspect_model.params import InspectModelParams

SPEC = ToolSpec(
    name="inspect_model",
    title="Modules and code of a model",
    description=(
        "Look up names and code: modules under standard names and transformers' own, with classes and shapes (a name "
        "that begins with a dot continues the group above), the sites that each kind of layer offers to "
        "interventions, a module's forward code, and where attention probabilities are used."
    ),
    examples=[{}, {"path": "layers[1].self_attn", "source": True}],
    params=InspectModelParams,
    digest=digest,
    recorded=False,
    group="basics",
)
