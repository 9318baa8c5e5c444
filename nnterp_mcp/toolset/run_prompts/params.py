"""Arguments of `run_prompts`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request.fields import Plot
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
    batch_tokens: Annotated[
        int | None,
        Field(ge=1, le=1 << 20, description="Padded tokens in a batch, at most."),
    ] = None
    interventions: Interventions = ()
    plot: Plot = False
