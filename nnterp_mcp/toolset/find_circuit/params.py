"""Arguments of `find_circuit`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.corruption import Ablated, CorruptedField, Noise
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.prompts import Prompts
from nnterp_mcp.request.targets import TargetSets

MetricChoice = Literal["auto", "logit_difference", "log_probability", "kl"]


class FindCircuitParams(ModelParams):
    """The behaviour, and the size of the circuit."""

    clean: Annotated[
        Prompts,
        schemas.as_schema(
            schemas.PROMPTS, "Prompts after which the model gives the answer; of 4 or more, every second is for tests."
        ),
    ]
    corrupted: Annotated[
        CorruptedField,
        schemas.as_schema(
            schemas.PROMPTS, 'As many prompts of equal length, or {"replace": "France", "with": "Spain"}.'
        ),
    ]
    targets: TargetSets = Field(default_factory=lambda: ({},))
    edges: Annotated[
        int | None,
        Field(ge=1, le=10**7, description="Edges of the circuit; by default as few as have a faithfulness of 0.8."),
    ] = None
    steps: Annotated[
        int, Field(ge=1, le=100, description="Points between the two prompts' embeddings at which slopes are taken.")
    ] = 5
    metric: MetricChoice = "auto"
    draws: Annotated[int, Field(ge=0, le=100, description="Random circuits of each size to compare with.")] = 5
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
