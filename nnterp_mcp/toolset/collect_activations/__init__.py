"""The tool `collect_activations`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.collect_activations.answer import digest
from nnterp_mcp.toolset.collect_activations.figure import figure
from nnterp_mcp.toolset.collect_activations.params import CollectActivationsParams

SPEC = ToolSpec(
    name="collect_activations",
    title="Collect activations",
    description=(
        "Keeps states of prompt sets with an index, for read_run and the op patch (from.run). By layer: norms, cosine "
        "and gap between group means beside random groups, principal components."
    ),
    params=CollectActivationsParams,
    digest=digest,
    figure=figure,
)
