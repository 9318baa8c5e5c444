"""Arguments of `edit_model`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request.operations import Interventions


class EditModelParams(ModelParams):
    """The edits that are to be active."""

    interventions: Annotated[
        Interventions,
        Field(description='The edits, in place of those before: [{"op": "skip", "layers": 3}]; [] clears them.'),
    ]
