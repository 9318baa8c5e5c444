"""Arguments of `logit_lens`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

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
    decompose: Annotated[int, Field(ge=0, le=64, description="Token directions that states are decomposed into.")] = 0
    interventions: Interventions = ()
    plot: Plot = False

    @model_validator(mode="after")
    def _decomposes_by_a_lens(self) -> Self:
        if self.decompose and self.lens == "inverse":
            raise ValueError("decompose is for the logit lens and for fitted lenses")
        return self
