"""Arguments of `patch_activations`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LONGEST_NAME, Given, decoded, require_at_most, shown
from nnterp_mcp.request.corruption import CorruptedField
from nnterp_mcp.request.fields import Edits, Plot
from nnterp_mcp.request.operations import Heads
from nnterp_mcp.request.positions import Layers, Positions, PositionSpec
from nnterp_mcp.request.prompts import Prompts
from nnterp_mcp.request.sites import FACTS, Site
from nnterp_mcp.request.targets import TargetSets

_SITES = tuple(site for site, facts in FACTS.items() if facts.patched)
_Direction = Literal["denoising", "noising"]
MetricChoice = Literal["auto", "logit_difference", "log_probability", "kl"]
_MOST_SPANS = 256
_MOST_RECEIVERS = 64
_RECEIVING = tuple(site for site, facts in FACTS.items() if facts.receives)


def _as_sites(value: Any) -> tuple[str, ...] | None:
    given = decoded(value)
    if given is None:
        return None
    items = given if isinstance(given, list | tuple) else [given]
    if not items or len(items) > len(_SITES) or any(item not in _SITES for item in items):
        raise ValueError(f"sites must be some of {', '.join(_SITES)}, not {shown(value)}")
    return tuple(dict.fromkeys(items))


class PatchedSpan(Given):
    """Positions that go by one label: in the clean prompts, and in the corrupted ones."""

    clean: Positions
    corrupted: Positions


def _as_positions(value: Any) -> Any:
    given = decoded(value)
    if not isinstance(given, Mapping) or isinstance(given.get("text"), str):
        return _POSITIONS.validate_python(given)
    if not given:
        raise ValueError("positions is empty: give at least one position")
    require_at_most(_MOST_SPANS, given, "positions", "spans")
    for label in given:
        require_at_most(LONGEST_NAME, str(label), "a span's label", "characters")
    return {str(label): _as_span(spec) for label, spec in given.items()}


def _as_span(value: Any) -> PatchedSpan:
    if isinstance(value, PatchedSpan):
        return value
    both = isinstance(value, Mapping) and "clean" in value
    return PatchedSpan.model_validate(value if both else {"clean": value, "corrupted": value})


def _as_receiving_site(site: Site) -> Site:
    if site not in _RECEIVING:
        raise ValueError(f"paths end at {', '.join(_RECEIVING)}, not at {site}")
    return site


class GivenReceiver(Given):
    """Where paths end."""

    site: Annotated[Site, AfterValidator(_as_receiving_site)]
    layers: Layers
    heads: Heads | None = None


def _as_receivers(value: Any) -> Any:
    given = decoded(value)
    if isinstance(given, list | tuple):
        require_at_most(_MOST_RECEIVERS, given, "receivers")
        return given
    return () if given == "logits" else (given,)


_POSITIONS: TypeAdapter[tuple[PositionSpec, ...]] = TypeAdapter(Positions)

_SiteList = Annotated[
    tuple[Site, ...] | None,
    BeforeValidator(_as_sites),
    schemas.as_schema(
        schemas.union(schemas.TEXT, schemas.array(schemas.TEXT), maxItems=len(_SITES)), f"{', '.join(_SITES)}."
    ),
]
_Spans = Annotated[
    tuple[PositionSpec, ...] | dict[str, PatchedSpan],
    BeforeValidator(_as_positions),
    schemas.as_schema(
        {**schemas.POSITIONS, "maxProperties": _MOST_SPANS},
        'Or spans: {"city": {"clean": 2, "corrupted": "2:4"}}; all ablates as one.',
    ),
]
_HeadColumns = Annotated[
    Heads | None,
    schemas.as_schema(schemas.INDICES, "By head."),
]
_Receivers = Annotated[
    tuple[GivenReceiver, ...] | None,
    BeforeValidator(_as_receivers),
    schemas.as_schema(
        schemas.union(schemas.TEXT, schemas.OBJECT, schemas.array(schemas.OBJECT), maxItems=_MOST_RECEIVERS),
        'Path patching: {"site": "queries", "layers": 9, "heads": 6} or logits.',
    ),
]


class PatchActivationsParams(ModelParams):
    """Two runs, what is put from one into the other, and what is measured."""

    clean: Annotated[Prompts, schemas.as_schema(schemas.PROMPTS, "Prompts.")]
    corrupted: CorruptedField
    targets: TargetSets = Field(default_factory=lambda: ({},))
    sites: _SiteList = None
    layers: Annotated[Layers, schemas.as_schema(schemas.INDICES, "Layers.")] = "all"
    positions: _Spans = Field(default_factory=lambda: ("all",))
    heads: _HeadColumns = None
    direction: Annotated[_Direction, Field(description="Run patched.")] = "denoising"
    metric: Annotated[MetricChoice, Field(description="By targets.")] = "auto"
    receivers: _Receivers = None
    window: Annotated[int, Field(ge=1, le=1000, description="Adjacent layers patched together.")] = 1
    interventions: Edits = ()
    control: Annotated[bool, Field(description="Random cells beside.")] = False
    plot: Plot = False
