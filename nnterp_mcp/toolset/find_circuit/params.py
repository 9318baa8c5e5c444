"""Arguments of `find_circuit`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LONGEST_TEXT, MOST_PROMPTS
from nnterp_mcp.request.corruption import Ablated, CorruptedField, Noise
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.operations import Interventions
from nnterp_mcp.request.prompts import Prompts
from nnterp_mcp.request.targets import TargetSets

_PROMPTS = schemas.union(
    schemas.OBJECT, schemas.TEXT, schemas.array(schemas.TEXT), maxLength=LONGEST_TEXT, maxItems=MOST_PROMPTS
)
"""The commonest forms; chats are accepted too, and an agent pays for each form that is listed."""


class FindCircuitParams(ModelParams):
    """The behaviour, and the size of the circuit."""

    clean: Annotated[Prompts, schemas.as_schema(_PROMPTS, "Prompts; of 4 or more, every second is held out.")]
    corrupted: Annotated[
        CorruptedField,
        schemas.as_schema(_PROMPTS, 'Prompts, or {"replace": "France", "with": "Spain"}.'),
    ]
    targets: TargetSets = Field(default_factory=lambda: ({},))
    edges: Annotated[
        int | None,
        Field(ge=1, le=10**7, description="Its size; by default for faithfulness 0.8."),
    ] = None
    steps: Annotated[int, Field(ge=1, le=100, description="Of integration.")] = 5
    draws: Annotated[int, Field(ge=0, le=100, description="Random circuits.")] = 5
    interventions: Interventions = ()
    plot: Plot = False

    @model_validator(mode="after")
    def _fits(self) -> FindCircuitParams:
        if isinstance(self.corrupted, Noise) or (
            isinstance(self.corrupted, Ablated) and self.corrupted.ablate != "resample"
        ):
            raise ValueError(
                'edges carry what they carry after other prompts: corrupted must be prompts, {"replace": …, "with": …} '
                'or {"ablate": "resample"}'
            )
        return self
