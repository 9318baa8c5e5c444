"""Arguments of `verify_claim`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import MOST_PROMPTS, decoded, require_at_most, shown
from nnterp_mcp.request.cells import MOST_NAMED, GivenCell, Spans, as_cells
from nnterp_mcp.request.corruption import Ablated, CorruptedField, Noise
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.named_sets import prompts_of
from nnterp_mcp.request.prompts import Prompts
from nnterp_mcp.request.targets import TargetSets

THEORY = "theory"
"""The origin of a claim that no prompt served to find."""


def _as_origin(value: Any) -> tuple[str, ...]:
    given = decoded(prompts_of(value))
    listed: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    require_at_most(MOST_PROMPTS, listed, "found_on")
    if not listed or not all(isinstance(one, str) and one for one in listed):
        raise ValueError(f'found_on must be "{THEORY}", run ids or prompts, not {shown(value)}')
    return tuple(listed)


_TEXTS: schemas.Schema = schemas.array(schemas.TEXT) | {"maxItems": MOST_PROMPTS}

_Claim = Annotated[
    tuple[GivenCell, ...],
    BeforeValidator(as_cells),
    Field(min_length=1),
    schemas.as_schema(
        schemas.union(schemas.OBJECT, schemas.array(schemas.TEXT), maxItems=MOST_NAMED),
        'Cells: ["L23H4", "mlps_output L3", "mlps_output L3@city"].',
    ),
]
_Origin = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_origin),
    schemas.as_schema(_TEXTS, 'What found the claim, to be left out: run ids, prompts, or "theory" for nothing.'),
]

Predicted = Literal["drives", "necessary", "sufficient", "opposes"]
"""The claim: that a component is necessary and sufficient, either, or both for the opposite."""


class VerifyClaimParams(ModelParams):
    """The claim, the behaviour, and how the claim was found."""

    claim: _Claim
    clean: Annotated[Prompts, schemas.as_schema(_TEXTS, "4 or more prompts not in found_on.")]
    corrupted: Annotated[
        CorruptedField,
        schemas.as_schema(
            schemas.union(schemas.OBJECT, schemas.array(schemas.TEXT), maxItems=MOST_PROMPTS),
            'Prompts; {"replace": "France", "with": "Spain"}; {"ablate": "resample"}.',
        ),
    ]
    found_on: _Origin
    targets: Annotated[
        TargetSets, schemas.as_schema(schemas.OBJECT, '{"answer": "Paris", "wrong": "Rome"}, or a list of these.')
    ] = Field(default_factory=lambda: ({},))
    predicts: Annotated[Predicted, Field(description="drives is both.")] = "drives"
    control_prompts: Annotated[
        Prompts | tuple[()],
        schemas.as_schema(_TEXTS, "Equally long prompts without the behaviour."),
    ] = ()
    positions: Annotated[
        Spans, schemas.as_schema(schemas.OBJECT, 'Spans: {"city": {"clean": 2, "corrupted": "2:4"}}.')
    ] = Field(default_factory=lambda: ("all",))
    plot: Plot = False

    @model_validator(mode="after")
    def _fits(self) -> VerifyClaimParams:
        given = self.corrupted
        if isinstance(given, Noise) or (isinstance(given, Ablated) and given.ablate != "resample"):
            raise ValueError(
                'corrupted must be prompts, {"replace": …, "with": …} or {"ablate": "resample"}: a claim is tested '
                "with states of other prompts, and with position-wise means in any case"
            )
        return self
