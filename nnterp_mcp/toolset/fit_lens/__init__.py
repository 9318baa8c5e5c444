"""The tool `fit_lens`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.fit_lens.answer import digest
from nnterp_mcp.toolset.fit_lens.figure import figure
from nnterp_mcp.toolset.fit_lens.params import FitLensParams

SPEC = ToolSpec(
    name="fit_lens",
    title="Fit a lens",
    description=(
        "Fit a lens that reads early layers, which the logit lens cannot, for logit_lens. jacobian: a state "
        "times the mean Jacobian of the last layer's states; takes as many backward passes a prompt as the "
        "model is wide. tuned: an affine map by least squares; fast, and may read what later layers are yet to "
        "compute. Reports KL(last layer || layer) on built-in texts, next to the logit lens. If it is "
        "cancelled, a Jacobian lens of the prompts that are done is kept."
    ),
    examples=[
        {
            "name": "tuned",
            "method": "tuned",
            "prompts": [
                "The river bends twice before it reaches the town.",
                "Two astronauts walked on the Moon while a third circled above them.",
            ],
            "skip_first": 1,
        },
    ],
    params=FitLensParams,
    digest=digest,
    figure=figure,
    read_only=False,
    destructive=True,
    group="training",
)
