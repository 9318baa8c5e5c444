"""Result and answer of `fit_lens`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import Result, ResultPart, TableAnswer
from nnterp_mcp.request.lenses import LensCard


class LensFit(ResultPart):
    """A layer of a lens on texts that it was not fitted on; means over the tokens that were read.

    Attributes:
        layer: The layer.
        kl: KL(last layer ‖ this layer) through the lens, in nats.
        plain_kl: The same through the logit lens.
        agreement: The share of tokens at which the lens's top token is the model's.
        plain_agreement: The same for the logit lens.
    """

    layer: int
    kl: float
    plain_kl: float
    agreement: float
    plain_agreement: float


class FitLensResult(Result):
    """The lens that was fitted, and how it reads.

    Attributes:
        model: The model's handle.
        card: The metadata of the lens.
        replaced: A lens of that name was there before.
        merged: The number of prompts of the lens that was merged.
        resumed: The number of prompts of this call that an earlier one had fitted.
        checked: The number of tokens of built-in texts on which it was read.
        layers: How it reads each layer; none of a fit that was stopped.
    """

    model: str
    card: LensCard
    replaced: bool = False
    merged: int = 0
    resumed: int = 0
    checked: int = 0
    layers: list[LensFit] = Field(default_factory=list[LensFit])


class FitLensAnswer(TableAnswer):
    """The lens as an agent sees it: how it reads each layer."""

    lens: Annotated[str, Field(description="The name for logit_lens.")]
