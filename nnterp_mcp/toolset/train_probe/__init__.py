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
        "Ask whether a linear probe can read a distinction from hidden states: cross-validated accuracy by "
        "layer, next to shuffled labels, the largest class and prompt length. It does not show that the "
        "model uses it. save_as keeps the directions for steer."
    ),
    examples=[
        {
            "prompts": {
                "positive": ["I love this film so", "She smiled and was very", "What a wonderful day, I feel"],
                "negative": ["I hate this film so", "She wept and was very", "What a terrible day, I feel"],
            },
            "folds": 3,
        },
    ],
    params=TrainProbeParams,
    digest=digest,
    figure=figure,
    read_only=False,
    destructive=True,
    group="training",
)
