"""Arguments of `fit_lens`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LONGEST_RANGE, LONGEST_STRING, MOST_PROMPTS
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.lenses import LensMethod, LensName
from nnterp_mcp.request.positions import Layers
from nnterp_mcp.request.prompt_sets import PromptSetField

_LAYERS = {**schemas.TEXT, "maxLength": LONGEST_RANGE}
"""The commonest form; integers and lists are taken too, and an agent pays for each form that is listed."""

_PROMPTS = schemas.union(schemas.OBJECT, schemas.array(schemas.TEXT), maxItems=MOST_PROMPTS)


class FitLensParams(ModelParams):
    """The lens to fit, and the prompts to fit it on."""

    name: Annotated[LensName, Field(description="Its name.")]
    method: Annotated[LensMethod, Field(description="See above.")]
    prompts: Annotated[PromptSetField, schemas.as_schema(_PROMPTS, 'Varied texts, {"set": NAME} or {"path": FILE}.')]
    layers: Annotated[Layers, schemas.as_schema(_LAYERS, "Layers.")] = "all"
    skip_first: Annotated[int, Field(ge=1, le=1024, description="First tokens to leave out.")] = 16
    merge: Annotated[
        str | None,
        Field(min_length=1, max_length=LONGEST_STRING, description="Lens to add these prompts to."),
    ] = None
    plot: Plot = False
