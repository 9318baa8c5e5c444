"""Arguments of `verify_claim`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import MOST_PROMPTS, Given, decoded, require_at_most, shown
from nnterp_mcp.request.cells import MOST_NAMED, GivenCell, Spans, as_cells
from nnterp_mcp.request.corruption import Ablated, CorruptedField, Noise
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.named_sets import prompts_of
from nnterp_mcp.request.operations import Vector
from nnterp_mcp.request.prompts import Prompts
from nnterp_mcp.request.sites import FACTS, Site
from nnterp_mcp.request.targets import TargetSets

THEORY = "theory"
"""The origin of a claim that no prompt served to find."""


_MOST_ROWS = 64
_WIDE = tuple(site for site, facts in FACTS.items() if facts.in_stream and facts.patched)


def _as_wide_site(site: Site) -> Site:
    if site not in _WIDE:
        raise ValueError(f"directions are claimed at {', '.join(_WIDE)}, not at {site}")
    return site


class ClaimedSubspace(Given):
    """A direction or a subspace of the states at a hook point.

    Attributes:
        vector: The direction, as `steer` takes it.
        rows: Vectors that span the subspace.
        layer: The layer.
        site: The site, as wide as the residual stream.
        positions: The spans at which it is exchanged; all tokens by default.
    """

    vector: Vector | None = None
    rows: Annotated[tuple[tuple[float, ...], ...] | None, Field(min_length=1, max_length=_MOST_ROWS)] = None
    layer: int
    site: Annotated[Site, AfterValidator(_as_wide_site)] = "layers_output"
    positions: tuple[int | str, ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> ClaimedSubspace:
        if (self.vector is None) == (self.rows is None):
            raise ValueError("a direction has a vector, and a subspace rows: give one of them")
        return self

    @property
    def cell(self) -> GivenCell:
        """The hook point, with its positions."""
        return GivenCell.model_validate({"site": self.site, "layers": self.layer, "positions": self.positions})


def _as_claim(value: Any) -> Any:
    given = decoded(value)
    if isinstance(given, ClaimedSubspace):
        return given
    if isinstance(given, Mapping) and ("vector" in given or "rows" in given):
        return ClaimedSubspace.model_validate(given)
    return as_cells(given)


def _as_origin(value: Any) -> tuple[str, ...]:
    given = decoded(prompts_of(value))
    listed: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    require_at_most(MOST_PROMPTS, listed, "found_on")
    if not listed or not all(isinstance(one, str) and one for one in listed):
        raise ValueError(f'found_on must be "{THEORY}", run ids or prompts, not {shown(value)}')
    return tuple(listed)


_TEXTS: schemas.Schema = schemas.array(schemas.TEXT) | {"maxItems": MOST_PROMPTS}

_Claim = Annotated[
    tuple[GivenCell, ...] | ClaimedSubspace,
    BeforeValidator(_as_claim),
    schemas.as_schema(
        schemas.union(schemas.OBJECT, schemas.array(schemas.TEXT), maxItems=MOST_NAMED),
        '["L23H4", "mlps_output L3@city"], {"vector": NAME, "layer": 3} or with "rows".',
    ),
]
_Origin = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_origin),
    schemas.as_schema(_TEXTS, 'What found the claim, left out: run ids, prompts or "theory".'),
]

Predicted = Literal["drives", "necessary", "sufficient", "opposes"]
"""The claim: that a component is necessary and sufficient, either, or both for the opposite."""


class VerifyClaimParams(ModelParams):
    """The claim, the behaviour, and how the claim was found."""

    claim: _Claim
    clean: Annotated[Prompts, schemas.as_schema(_TEXTS, "4 or more not in found_on.")]
    corrupted: Annotated[
        CorruptedField,
        schemas.as_schema(
            schemas.union(schemas.OBJECT, schemas.array(schemas.TEXT), maxItems=MOST_PROMPTS),
            'Prompts; {"replace": "France", "with": "Spain"}.',
        ),
    ]
    found_on: _Origin
    targets: Annotated[
        TargetSets, schemas.as_schema(schemas.OBJECT, '{"answer": "Paris", "wrong": "Rome"} or a list.')
    ] = Field(default_factory=lambda: ({},))
    predicts: Annotated[Predicted, Field(description="drives is both.")] = "drives"
    control_prompts: Annotated[
        Prompts | tuple[()],
        schemas.as_schema(_TEXTS, "Without the behaviour, equally long."),
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
