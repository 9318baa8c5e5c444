"""Arguments of `generate`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request.arguments import LARGEST_SEED
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.operations import DescribedInterventions
from nnterp_mcp.request.prompts import Prompts


class GenerateParams(ModelParams):
    """The prompts, the sampling, and the interventions."""

    prompts: Prompts
    interventions: DescribedInterventions = ()
    max_new_tokens: Annotated[
        int,
        Field(ge=0, le=2048, description="Tokens written at most; 0 scores the prompts instead."),
    ] = 32
    temperature: Annotated[float, Field(ge=0, le=100, description="Sampling temperature; 0 takes the top token.")] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1, description="Nucleus sampling: probability mass.")] = 1.0
    top_k: Annotated[int, Field(ge=0, le=1_000_000, description="Tokens to sample from; 0 is all.")] = 0
    seed: Annotated[
        int,
        Field(ge=0, le=LARGEST_SEED, description="Seed of sampling."),
    ] = 0
    chat: Annotated[bool, Field(description="Put a plain text through the chat template as the user's message.")] = (
        False
    )
    logprobs: Annotated[bool, Field(description="Show the log-probability of each token, in nats.")] = False
    plot: Plot = False
