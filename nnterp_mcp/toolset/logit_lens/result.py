"""Result and answer of `logit_lens`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from nnterp_mcp.contract import Answer, Result, TableField

Lens = Literal["logit", "inverse"]


class LayerReading(BaseModel):
    """One layer's distribution: probabilities from 0 to 1, entropy and KL(last layer ‖ this layer) in nats."""

    model_config = ConfigDict(extra="forbid")

    layer: int
    top: list[tuple[str, float]]
    entropy: float
    kl: float
    targets: list[tuple[float, int]]


class Reading(BaseModel):
    """The lens at one position of one prompt; the final answer is the model's own likeliest token there."""

    model_config = ConfigDict(extra="forbid")

    prompt: int
    text: str
    position: int
    token: str
    layers: list[LayerReading]
    leads_from: int | None


class Readings(BaseModel):
    """The readings of some of the prompts."""

    readings: list[Reading]


class LogitLensResult(Result):
    """Every reading, at every layer that was asked for."""

    model: str
    lens: Lens = "logit"
    last_layer: int
    categories: dict[str, list[str]]
    shared: dict[str, list[str]]
    interventions: list[str]
    readings: list[Reading]


class LogitLensAnswer(Answer):
    """The readings as an agent sees them."""

    model: str
    total: Annotated[int, Field(description="Readings: prompts × positions.")]
    truncated: Annotated[bool, Field(description="Whether rows were left out.")]
    table: TableField
