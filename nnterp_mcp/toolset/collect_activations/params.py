"""Arguments of `collect_activations`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request.fields import Plot, ProbedLayers, ProbedPositions, StateSite
from nnterp_mcp.request.operations import Interventions
from nnterp_mcp.request.prompts import PromptGroups

Pooling = Annotated[
    Literal["none", "mean", "last"], Field(description="Keep all positions (none), their mean, or the last.")
]


class CollectActivationsParams(ModelParams):
    """Which states to keep, of which prompts."""

    prompts: PromptGroups
    site: StateSite = "layers_output"
    layers: ProbedLayers = "all"
    positions: ProbedPositions = ("last",)
    pool: Pooling = "none"
    interventions: Interventions = ()
    plot: Plot = False
