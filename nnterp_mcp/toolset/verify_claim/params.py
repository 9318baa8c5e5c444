"""Arguments of `verify_claim`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import MOST_PROMPTS, decoded, require_at_most, shown
from nnterp_mcp.request.cells import GivenCell, Spans, as_cells
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


_Claim = Annotated[
    tuple[GivenCell, ...],
    BeforeValidator(as_cells),
    Field(min_length=1),
    schemas.as_schema(
        schemas.union(schemas.array(schemas.TEXT), schemas.array(schemas.OBJECT)),
        'Cells as in patch_activations: ["L23H4", {"site": "mlps_output", "layers": 3, "positions": "city"}].',
    ),
]
_Origin = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_origin),
    schemas.as_schema(
        schemas.union(schemas.TEXT, schemas.array(schemas.TEXT)),
        'What the claim was found with, whose prompts the test leaves out: run ids, prompts, or "theory" for none.',
    ),
]


class VerifyClaimParams(ModelParams):
    """The claim, the behaviour, and how the claim was found."""

    claim: _Claim
    clean: Annotated[
        Prompts, schemas.as_schema(schemas.PROMPTS, "Prompts with the behaviour, at least 4 not in found_on.")
    ]
    corrupted: CorruptedField
    found_on: _Origin
    targets: TargetSets = Field(default_factory=lambda: ({},))
    metric: Annotated[
        Literal["auto", "logit_difference", "log_probability", "kl"],
        Field(description="As in patch_activations."),
    ] = "auto"
    sign: Annotated[
        Literal["drives", "opposes"], Field(description="The predicted effect of the component on the behaviour.")
    ] = "drives"
    asserts: Annotated[Literal["both", "necessity", "sufficiency"], Field(description="What the verdict requires.")] = (
        "both"
    )
    least: Annotated[float, Field(gt=0, le=1, description="Smallest share of the gap that counts.")] = 0.1
    control_prompts: Annotated[
        Prompts | tuple[()],
        schemas.as_schema(
            schemas.array(schemas.TEXT),
            "Prompts without the behaviour, of one length, that it must not change as much.",
        ),
    ] = ()
    positions: Spans = Field(default_factory=lambda: ("all",))
    nulls: Annotated[int, Field(ge=20, le=999, description="Random components.")] = 39
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
