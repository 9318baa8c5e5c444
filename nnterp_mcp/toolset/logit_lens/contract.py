"""`logit_lens`: what it takes and what it answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import ModelParams, ToolSpec
from nnterp_mcp.request.fields import Layers, Plot, Positions, Prompts, Targets, TopK
from nnterp_mcp.request.operations import Interventions
from nnterp_mcp.toolset.logit_lens.digest import digest, render
from nnterp_mcp.toolset.logit_lens.figure import figure
from nnterp_mcp.toolset.logit_lens.result import Lens, LogitLensAnswer, LogitLensResult


class LogitLensParams(ModelParams):
    """What to read, and where."""

    prompts: Prompts
    layers: Layers = "all"
    positions: Positions = ("last",)
    top_k: TopK = 3
    targets: Targets = Field(default_factory=dict)
    lens: Annotated[Lens, Field(description="inverse: negated logits, what a layer speaks against.")] = "logit"
    interventions: Interventions = ()
    plot: Plot = False


SPEC = ToolSpec(
    name="logit_lens",
    title="Logit lens",
    description=(
        "What each layer would predict next if the model ended there: likeliest tokens, entropy, KL(last layer || "
        "layer), and the probability and rank of target strings; in nats. At the last layer it is the model's own "
        "output, exactly. Early layers may hold information in a basis that the lens cannot read, so a flat "
        "distribution there proves nothing."
    ),
    params=LogitLensParams,
    result=LogitLensResult,
    answer=LogitLensAnswer,
    digest=digest,
    render=render,
    figure=figure,
    served=True,
)
