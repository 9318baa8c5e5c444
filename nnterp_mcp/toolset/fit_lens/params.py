"""Arguments of `fit_lens`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.lenses import LensMethod, LensName
from nnterp_mcp.request.positions import Layers
from nnterp_mcp.request.prompts import Prompts


class FitLensParams(ModelParams):
    """The lens to fit, and the prompts to fit it on."""

    name: Annotated[LensName, Field(description="Its name, for lens of logit_lens.")]
    method: LensMethod
    prompts: Annotated[Prompts, Field(description="Varied texts, best of over 100 tokens.")]
    layers: Layers = "all"
    skip_first: Annotated[int, Field(ge=1, le=1024, description="First tokens of each prompt to leave out.")] = 16
    merge: Annotated[
        LensName | None, Field(description="A Jacobian lens of other prompts, whose mean this one joins.")
    ] = None
    plot: Plot = False

    @model_validator(mode="after")
    def _merges_jacobians(self) -> Self:
        if self.merge is not None and self.method != "jacobian":
            raise ValueError("merge is for the method jacobian: a tuned lens is fitted in one call")
        return self
