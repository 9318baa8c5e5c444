"""Arguments of `patch_activations`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LONGEST_NAME, Given, decoded, require_at_most, shown
from nnterp_mcp.request.corruption import CorruptedField
from nnterp_mcp.request.dictionaries import DictionaryName
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.operations import Heads, Interventions
from nnterp_mcp.request.positions import Layers, Positions, PositionSpec
from nnterp_mcp.request.prompts import Prompts
from nnterp_mcp.request.sites import FACTS, Site
from nnterp_mcp.request.targets import TargetSets

_SITES = tuple(site for site, facts in FACTS.items() if facts.patched)
_Direction = Literal["denoising", "noising"]
_Paths = Literal["direct", "residual"]
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


def _as_patched_site(site: Site | None) -> Site | None:
    if site is not None and site not in _SITES:
        raise ValueError(f"cells have one of the sites {', '.join(_SITES)}, not {site}")
    return site


def _as_tuple(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple) else (value,)


class GivenReceiver(Given):
    """The end of paths."""

    site: Annotated[Site, AfterValidator(_as_receiving_site)]
    layers: Layers
    heads: Heads | None = None

    @property
    def words(self) -> str:
        """The end in words."""
        heads = "" if self.heads is None else f", {_counted('head', self.heads)}"
        return f"{self.site} of {_counted('layer', self.layers)}{heads}"


def _counted(noun: str, asked: Any) -> str:
    """Layers or heads as a call names them: layer 3, layers 3, 5, all layers."""
    items = list(asked) if isinstance(asked, tuple | list) else [asked]
    if items == ["all"]:
        return f"all {noun}s"
    one = len(items) == 1 and str(items[0]).lstrip("-").isdigit()
    return f"{noun}{'' if one else 's'} {', '.join(map(str, items))}"


def _as_receivers(value: Any) -> Any:
    given = decoded(value)
    if isinstance(given, list | tuple):
        require_at_most(_MOST_RECEIVERS, given, "receivers")
        return given
    return () if given == "logits" else (given,)


_HEAD = re.compile(r"L(\d+)H(\d+)")
_MOST_CELLS = 1000
_MOST_FEATURES = 256


class GivenCell(Given):
    """Cells of the grid: of a site and layers, some heads, or some positions or labels of `positions`."""

    site: Annotated[Site | None, AfterValidator(_as_patched_site)] = None
    layers: Layers
    heads: Annotated[tuple[int, ...] | None, BeforeValidator(_as_tuple)] = None
    positions: Annotated[tuple[int | str, ...] | None, BeforeValidator(_as_tuple)] = None

    @property
    def columns(self) -> list[str] | None:
        """Labels of columns; None for all."""
        given = self.positions if self.heads is None else self.heads
        return None if given is None else [str(one) for one in given]

    @property
    def shown(self) -> str:
        """As it was given."""
        return shown(self.model_dump(mode="json", exclude_none=True))


class GivenFeatures(Given):
    """Features of a loaded dictionary, at the positions of the call."""

    site: Literal["features"]
    dictionary: DictionaryName
    features: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        BeforeValidator(_as_tuple),
        Field(min_length=1, max_length=_MOST_FEATURES),
    ]
    layers: int | None = None


def _as_cells(value: Any) -> Any:
    given = decoded(value)
    listed = given if isinstance(given, list | tuple) else [given]
    require_at_most(_MOST_CELLS, listed, "cells")
    return [_as_cell(one) for one in listed]


def _as_cell(value: Any) -> Any:
    if not isinstance(value, str):
        features = isinstance(value, Mapping) and value.get("site") == "features"
        return GivenFeatures.model_validate(value) if features else value
    found = _HEAD.fullmatch(value)
    if found is None:
        raise ValueError(f'a cell is a head such as "L23H4" or an object with layers, not {shown(value)}')
    return {"site": "heads_output", "layers": int(found[1]), "heads": int(found[2])}


_POSITIONS: TypeAdapter[tuple[PositionSpec, ...]] = TypeAdapter(Positions)

_SiteList = Annotated[
    tuple[Site, ...] | None,
    BeforeValidator(_as_sites),
    schemas.as_schema(
        schemas.union(schemas.TEXT, schemas.array(schemas.TEXT), maxItems=len(_SITES)),
        "layers_output (default), attentions_output, mlps_output, heads_output, queries, keys, values or layers_input.",
    ),
]
_Spans = Annotated[
    tuple[PositionSpec, ...] | dict[str, PatchedSpan],
    BeforeValidator(_as_positions),
    schemas.as_schema(
        {**schemas.POSITIONS, "maxProperties": _MOST_SPANS},
        'Tokens, or spans: {"city": {"clean": 2, "corrupted": "2:4"}}. Ablations take all together by default.',
    ),
]
_HeadColumns = Annotated[
    Heads | None,
    schemas.as_schema(
        schemas.INDICES,
        "Heads to patch one by one, at all positions together: 'all' or a list; site heads_output, "
        "queries, keys or values.",
    ),
]
_Receivers = Annotated[
    tuple[GivenReceiver, ...] | None,
    BeforeValidator(_as_receivers),
    schemas.as_schema(
        schemas.union(schemas.TEXT, schemas.OBJECT, schemas.array(schemas.OBJECT), maxItems=_MOST_RECEIVERS),
        'Path patching to {"site": "queries", "layers": 9, "heads": 6} or "logits".',
    ),
]
_Cells = Annotated[
    tuple[GivenCell | GivenFeatures, ...],
    BeforeValidator(_as_cells),
    schemas.as_schema(
        schemas.union(schemas.array(schemas.TEXT), schemas.array(schemas.OBJECT), maxItems=_MOST_CELLS),
        'Cells patched together: ["L23H4", {"site": "mlps_output", "layers": 3}], or [{"site": "features", '
        '"dictionary": NAME, "features": [5]}].',
    ),
]


class PatchActivationsParams(ModelParams):
    """Two runs, the states of one that replace those of the other, and the metric."""

    clean: Annotated[
        Prompts,
        schemas.as_schema(
            schemas.PROMPTS, "Prompts after which the model gives the answer: a text, a chat or a list of these."
        ),
    ]
    corrupted: CorruptedField
    targets: TargetSets = Field(default_factory=lambda: ({},))
    sites: _SiteList = None
    layers: Annotated[
        Layers,
        schemas.as_schema(schemas.INDICES, "Layers to patch, each by itself."),
    ] = "all"
    positions: _Spans = Field(default_factory=lambda: ("all",))
    heads: _HeadColumns = None
    direction: Annotated[_Direction, Field(description="noising patches clean runs with corrupted states.")] = (
        "denoising"
    )
    metric: Annotated[
        MetricChoice,
        Field(
            description="What is measured after the last token, in logits or nats; auto takes logit_difference with"
            " two targets, log_probability with one, and kl, KL(clean ‖ patched), with none."
        ),
    ] = "auto"
    receivers: _Receivers = None
    paths: Annotated[
        _Paths, Field(description="Paths to receivers: direct recomputes MLPs, residual freezes them.")
    ] = "direct"
    cells: _Cells = ()
    complement: Annotated[bool, Field(description="Measure the cells' faithfulness, completeness and minimality.")] = (
        False
    )
    window: Annotated[
        int, Field(ge=1, le=1000, description="Number of adjacent layers that each cell patches together.")
    ] = 1
    interventions: Interventions = ()
    control: Annotated[bool, Field(description="Compare the strongest cells with 20 random sets.")] = False
    plot: Plot = False

    @property
    def grid_cells(self) -> list[GivenCell]:
        """The cells that lie in the grid."""
        return [cell for cell in self.cells if isinstance(cell, GivenCell)]

    @property
    def features(self) -> list[GivenFeatures]:
        """The cells that are features."""
        return [cell for cell in self.cells if isinstance(cell, GivenFeatures)]

    @property
    def columns(self) -> tuple[Sequence[Site], Any]:
        """The sites of the grid, and its heads where it is by head."""
        heads, cells = self.heads, self.grid_cells
        if heads is None and any(cell.heads is not None for cell in cells):
            heads = "all"
        usual: Site = "layers_output" if heads is None else "heads_output"
        named: dict[Site, None] = dict.fromkeys(cell.site for cell in cells if cell.site is not None)
        return self.sites or tuple(named) or (usual,), heads

    @property
    def ends(self) -> str | None:
        """The receivers in words; None without any."""
        if self.receivers is None:
            return None
        return "; ".join(receiver.words for receiver in self.receivers) or "the logits"

    @model_validator(mode="after")
    def _fits(self) -> PatchActivationsParams:
        if self.complement and not self.cells:
            raise ValueError('complement goes with cells, such as ["L23H4"]')
        if self.cells and (self.control or self.window > 1):
            raise ValueError("cells are compared with random sets in any case, and take no control and no window")
        if self.features:
            self._require_features_alone()
        return self

    def _require_features_alone(self) -> None:
        if self.grid_cells or len({(cell.dictionary, cell.layers) for cell in self.features}) > 1:
            raise ValueError("cells of site features are those of one dictionary and one layer, without other cells")
        for name in ("receivers", "complement", "heads", "sites"):
            if getattr(self, name) not in (None, False):
                raise ValueError(f"features are patched together, along all paths: leave out {name}")
