"""Result and answer of `logit_lens`."""

from __future__ import annotations

import operator
from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import Result, ResultPart, TableAnswer
from nnterp_mcp.request.lenses import LensCard


class TokenSum(ResultPart):
    """A state as a sum of the directions that the lens reads as tokens, with weights of at least 0.

    Attributes:
        tokens: The tokens and the lengths of their parts as shares of the state's norm, the longest first.
        explained: The share of the state's squared norm that the sum explains.
        controls: The same share for as many directions of each control: `rotated`, the same directions turned at random
            together; with a fitted lens `unembedding`, its rows, and `other layers`, the lens's
            directions half the depth away.
    """

    tokens: list[tuple[str, float]]
    explained: float
    controls: dict[str, float]


class LayerReading(ResultPart):
    """One layer's distribution: probabilities from 0 to 1, entropy and KL(last layer ‖ this layer) in nats.

    Attributes:
        plain: The logit lens's top token and its probability, where another lens was fitted.
        decomposition: The state as a sum of token directions, where that was asked for.
    """

    layer: int
    top: list[tuple[str, float]]
    entropy: float
    kl: float
    targets: list[tuple[float, int]]
    plain: Annotated[tuple[str, float] | None, Field(exclude_if=operator.not_)] = None
    decomposition: Annotated[TokenSum | None, Field(exclude_if=operator.not_)] = None


class LensReading(ResultPart):
    """The lens at one position of one prompt; the final answer is the model's own top token there.

    Attributes:
        leads_from: The layer from which on that token is on top; None where the last layer was not read.
        plain_leads_from: The same for the logit lens, where another lens was fitted.
    """

    prompt: int
    text: str
    position: int
    token: str
    layers: list[LayerReading]
    leads_from: int | None
    plain_leads_from: Annotated[int | None, Field(exclude_if=lambda value: value is None)] = None


class LogitLensResult(Result):
    """Every reading, at every layer that was asked for.

    Attributes:
        lens: The lens that was asked for.
        fitted: What is known of it, where it is a fitted one.
    """

    model: str
    lens: str = "logit"
    fitted: Annotated[LensCard | None, Field(exclude_if=operator.not_)] = None
    last_layer: int
    categories: dict[str, list[str]]
    shared: dict[str, list[str]]
    interventions: list[str]
    readings: list[LensReading]


class LogitLensAnswer(TableAnswer):
    """The readings as an agent sees them."""
