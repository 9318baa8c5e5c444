"""Arguments of `patch_activations`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import Given, decoded, require_at_most, shown
from nnterp_mcp.request.cells import PATCHED_SITES, Cells, GivenCell, GivenFeatures, Spans
from nnterp_mcp.request.corruption import CorruptedField
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.operations import Heads, Interventions
from nnterp_mcp.request.positions import Layers
from nnterp_mcp.request.prompts import Prompts
from nnterp_mcp.request.sites import FACTS, HEAD_SITES, Site
from nnterp_mcp.request.targets import TargetSets

_Direction = Literal["denoising", "noising"]
_Paths = Literal["direct", "residual"]
MetricChoice = Literal["auto", "logit_difference", "log_probability", "kl"]
_MOST_RECEIVERS = 64
_RECEIVING = tuple(site for site, facts in FACTS.items() if facts.receives)


def _as_sites(value: Any) -> tuple[str, ...] | None:
    given = decoded(value)
    if given is None:
        return None
    items = given if isinstance(given, list | tuple) else [given]
    if not items or len(items) > len(PATCHED_SITES) or any(item not in PATCHED_SITES for item in items):
        raise ValueError(f"sites must be some of {', '.join(PATCHED_SITES)}, not {shown(value)}")
    return tuple(dict.fromkeys(items))


def _as_receiving_site(site: Site) -> Site:
    if site not in _RECEIVING:
        raise ValueError(f"paths end at {', '.join(_RECEIVING)}, not at {site}")
    return site


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


_SiteList = Annotated[
    tuple[Site, ...] | None,
    BeforeValidator(_as_sites),
    schemas.as_schema(
        schemas.union(schemas.TEXT, schemas.array(schemas.TEXT), maxItems=len(PATCHED_SITES)),
        "layers_output (default), attentions_output, mlps_output, heads_output, queries, keys, values or layers_input.",
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
    positions: Spans = Field(default_factory=lambda: ("all",))
    heads: _HeadColumns = None
    direction: Annotated[_Direction, Field(description="noising patches clean runs with corrupted states.")] = (
        "denoising"
    )
    metric: Annotated[
        MetricChoice,
        Field(
            description="Measured after the last token, in logits or nats; auto: logit_difference with two targets, "
            "log_probability with one, kl, KL(clean ‖ patched), with none."
        ),
    ] = "auto"
    receivers: _Receivers = None
    paths: Annotated[
        _Paths, Field(description="Paths to receivers: direct recomputes MLPs, residual freezes them.")
    ] = "direct"
    cells: Cells = ()
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
    def wholes(self) -> list[Site]:
        """Where cells name heads, the other sites of the grid, each layer of which is a cell."""
        by_head = {cell.site for cell in self.grid_cells if cell.heads is not None}
        return [site for site in self.columns[0] if by_head and site not in {*by_head, *HEAD_SITES}]

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
