"""Result and answer of `generate`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from nnterp_mcp.contract import Answer, Result, TableField


class Continuation(BaseModel):
    """One generated text; log-probabilities in nats under the model that generated it, before temperature."""

    model_config = ConfigDict(extra="forbid")

    text: str
    tokens: list[str]
    log_probs: list[float]
    ended: bool


class Continued(BaseModel):
    """One prompt, continued by the model as it is and, if there are interventions, with them in force."""

    model_config = ConfigDict(extra="forbid")

    index: int
    prompt: str
    prompt_tokens: int
    baseline: Continuation
    edited: Continuation | None
    differs_at: int | None


class Texts(BaseModel):
    """The texts of some of the prompts."""

    texts: list[Continued]


class GenerateResult(Result):
    """Every text, whole."""

    model: str
    interventions: list[str]
    logprobs: bool
    texts: list[Continued]


class GenerateAnswer(Answer):
    """The texts as an agent sees them."""

    model: str
    total: Annotated[int, Field(description="Texts: prompts, twice if edited.")]
    truncated: Annotated[bool, Field(description="Whether text or rows were left out.")]
    table: TableField
