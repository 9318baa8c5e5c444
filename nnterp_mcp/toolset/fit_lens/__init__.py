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
        "Fit a lens for logit_lens that reads early layers. jacobian: multiplies a state by the mean Jacobian of the "
        "last layer's state; as many backward passes a prompt as the model is wide. tuned: affine, by least squares; "
        "fast, but may read what later layers compute. The same call resumes one that was stopped. Reports "
        "KL(last layer || layer)."
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
