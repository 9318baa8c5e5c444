"""The tool `generate`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.generate.answer import digest
from nnterp_mcp.toolset.generate.params import GenerateParams

SPEC = ToolSpec(
    name="generate",
    title="Generate text",
    description=(
        "Continues prompts, and with interventions shows the edited text beside its baseline (same seed). They act at "
        "every new token where positions say 'all', 'last' or an open range such as '1:'; steps (0: the prompt) says "
        "otherwise. Log-probabilities in nats are of the model that chose the tokens, before temperature: a "
        "damaged model can be confident."
    ),
    params=GenerateParams,
    digest=digest,
)
