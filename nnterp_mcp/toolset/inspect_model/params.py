"""Arguments of `inspect_model`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from nnterp_mcp.contract import ModelParams


class InspectModelParams(ModelParams):
    """The view of the model."""

    path: Annotated[
        Annotated[str, StringConstraints(min_length=1, max_length=300)] | None,
        Field(description="A module, layers[3].self_attn or model.layers.3.mlp; by default the whole model."),
    ] = None
    source: Annotated[
        bool, Field(description="Show the module's forward code; without path, where attention probabilities are used.")
    ] = False
    start: Annotated[
        int | None, Field(ge=1, le=1_000_000, description="Line of the file at which to begin the code.")
    ] = None
