"""The tool `train_probe`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.train_probe.answer import digest
from nnterp_mcp.toolset.train_probe.figure import figure
from nnterp_mcp.toolset.train_probe.params import TrainProbeParams

SPEC = ToolSpec(
    name="train_probe",
    title="Train a probe",
    description=(
        "Linear probes by layer: cross-validated accuracy beside shuffled labels. save_as keeps directions for steer."
    ),
    params=TrainProbeParams,
    digest=digest,
    figure=figure,
    read_only=False,
    destructive=True,
)
