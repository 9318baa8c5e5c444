"""Result and answer of `logit_lens`."""

from __future__ import annotations

from typing import Literal

from nnterp_mcp.contract import Result, ResultPart, TableAnswer

Lens = Literal["logit", "inverse"]


class LayerReading(ResultPart):
    """One layer's distribution: probabilities from 0 to 1, entropy and KL(last layer ‖ this layer) in nats."""

    layer: int
    top: list[tuple[str, float]]
    entropy: float
    kl: float
    targets: list[tuple[float, int]]


class LensReading(ResultPart):
    """The lens at one position of one prompt; the final answer is the model's own top token there."""

    prompt: int
    text: str
    position: int
    token: str
    layers: list[LayerReading]
    leads_from: int | None


class LogitLensResult(Result):
    """Every reading, at every layer that was asked for."""

    model: str
    lens: Lens = "logit"
    last_layer: int
    categories: dict[str, list[str]]
    shared: dict[str, list[str]]
    interventions: list[str]
    readings: list[LensReading]


class LogitLensAnswer(TableAnswer):
    """The readings as an agent sees them."""
