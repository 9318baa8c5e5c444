"""The tool `steer`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.steer.answer import digest
from nnterp_mcp.toolset.steer.figure import figure
from nnterp_mcp.toolset.steer.params import SteerParams

SPEC = ToolSpec(
    name="steer",
    title="Steer with a vector",
    description=(
        "Adds factor × vector to the residual stream after one layer at a time and shows what the model then says "
        "beside its baseline, over a sweep of layers and factors: next-token distributions, KL(steered || baseline) "
        "in nats, and generated text (steered at every token). Any large push moves a model: control=true adds random "
        "directions of equal norm, beside which an effect counts. `push` is the length added over the state's own."
    ),
    params=SteerParams,
    digest=digest,
    figure=figure,
)
