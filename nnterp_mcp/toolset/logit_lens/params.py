"""Arguments of `logit_lens`."""

from __future__ import annotations

from pydantic import Field

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request.fields import Plot, TopK
from nnterp_mcp.request.lenses import LensChoice
from nnterp_mcp.request.operations import Interventions
from nnterp_mcp.request.positions import Layers, Positions
from nnterp_mcp.request.prompts import Prompts
from nnterp_mcp.request.targets import Targets


class LogitLensParams(ModelParams):
    """The prompts, and the layers and positions that are read."""

    prompts: Prompts
    layers: Layers = "all"
    positions: Positions = ("last",)
    top_k: TopK = 3
    targets: Targets = Field(default_factory=dict)
    lens: LensChoice = "logit"
    interventions: Interventions = ()
    plot: Plot = False
