"""Arguments of `run_prompts`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.lenses import LensChoices
from nnterp_mcp.request.operations import Interventions
from nnterp_mcp.request.positions import Layers
from nnterp_mcp.request.prompt_sets import PromptSetField
from nnterp_mcp.request.targets import TargetSets


class RunPromptsParams(ModelParams):
    """Which prompts to run, and what to follow in their answers."""

    prompts: PromptSetField
    targets: TargetSets = Field(default_factory=lambda: ({},))
    readout: Annotated[
        Literal["next_token", "logit_lens", "patchscope"],
        Field(description="Read the model's next token, or each layer by logit lens or patchscope."),
    ] = "next_token"
    layers: Layers = "all"
    lens: LensChoices = ()
    batch_tokens: Annotated[
        int | None,
        Field(ge=1, le=1 << 20, description="Padded tokens in a batch, at most."),
    ] = None
    interventions: Interventions = ()
    plot: Plot = False

    @model_validator(mode="after")
    def _reads_layers(self) -> Self:
        if self.lens and self.readout != "logit_lens":
            raise ValueError('lens is for readout="logit_lens"')
        return self
