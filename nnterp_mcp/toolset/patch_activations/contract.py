"""`patch_activations`: what it takes and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, WithJsonSchema

from nnterp_mcp.contract import ModelParams, ToolSpec
from nnterp_mcp.fields import Layers, Plot, Positions, PositionSpec, Prompts, TargetSets, shown
from nnterp_mcp.operations import Heads
from nnterp_mcp.toolset.collect_activations.contract import Edits
from nnterp_mcp.toolset.patch_activations.corrupted import CorruptedField
from nnterp_mcp.toolset.patch_activations.digest import digest, render
from nnterp_mcp.toolset.patch_activations.figure import figure
from nnterp_mcp.toolset.patch_activations.result import PatchActivationsAnswer, PatchActivationsResult

PatchedSite = Literal[
    "layers_input",
    "layers_output",
    "attentions_output",
    "attentions_raw_output",
    "mlps_output",
    "mlps_raw_output",
    "heads_output",
    "queries",
    "keys",
    "values",
]
_SITES = get_args(PatchedSite)
Direction = Literal["denoising", "noising"]
MetricChoice = Literal["auto", "logit_difference", "log_probability", "kl"]
ReceivingSite = Literal["queries", "keys", "values", "heads_output", "attentions_output", "mlps_output"]


def _as_sites(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    items = value if isinstance(value, list | tuple) else [value]
    if not items or any(item not in _SITES for item in items):
        raise ValueError(f"sites must be some of {', '.join(_SITES)}, not {shown(value)}")
    return tuple(dict.fromkeys(items))


class Span(BaseModel):
    """Positions that go by one label: in the clean prompts, and in the corrupted ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clean: Positions
    corrupted: Positions


def _as_positions(value: Any) -> Any:
    if not isinstance(value, Mapping) or isinstance(value.get("text"), str):
        return _POSITIONS.validate_python(value)
    if not value:
        raise ValueError("positions is empty: give at least one position")
    return {str(label): _as_span(spec) for label, spec in value.items()}


def _as_span(value: Any) -> Span:
    if isinstance(value, Span):
        return value
    both = isinstance(value, Mapping) and "clean" in value
    return Span.model_validate(value if both else {"clean": value, "corrupted": value})


class Receiver(BaseModel):
    """Where paths end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    site: ReceivingSite
    layers: Layers
    heads: Heads | None = None


def _as_receivers(value: Any) -> Any:
    if value is None or isinstance(value, list | tuple):
        return value
    return () if value == "logits" else (value,)


_POSITIONS: TypeAdapter[tuple[PositionSpec, ...]] = TypeAdapter(Positions)

_SiteList = Annotated[
    tuple[PatchedSite, ...] | None,
    BeforeValidator(_as_sites),
    WithJsonSchema({"type": ["string", "array"], "description": f"{', '.join(_SITES)}."}),
]
_Spans = Annotated[
    tuple[PositionSpec, ...] | dict[str, Span],
    BeforeValidator(_as_positions),
    WithJsonSchema(
        {
            "type": ["integer", "string", "object", "array"],
            "description": 'Or spans: {"city": {"clean": 2, "corrupted": "2:4"}}; all ablates as one.',
        }
    ),
]
_HeadColumns = Annotated[
    Heads | None,
    WithJsonSchema({"type": ["integer", "string", "array"], "description": "By head."}),
]
_Receivers = Annotated[
    tuple[Receiver, ...] | None,
    BeforeValidator(_as_receivers),
    WithJsonSchema(
        {
            "type": ["string", "object", "array"],
            "description": 'Path patching: {"site": "queries", "layers": 9, "heads": 6} or logits.',
        }
    ),
]


class PatchActivationsParams(ModelParams):
    """Two runs, what is put from one into the other, and what is measured."""

    clean: Annotated[Prompts, WithJsonSchema({"type": ["string", "array"], "description": "Prompts."})]
    corrupted: CorruptedField
    targets: TargetSets = Field(default_factory=lambda: ({},))
    sites: _SiteList = None
    layers: Annotated[Layers, WithJsonSchema({"type": ["integer", "string", "array"], "description": "Layers."})] = (
        "all"
    )
    positions: _Spans = Field(default_factory=lambda: ("all",))
    heads: _HeadColumns = None
    direction: Annotated[Direction, Field(description="Run patched.")] = "denoising"
    metric: Annotated[MetricChoice, Field(description="By targets.")] = "auto"
    receivers: _Receivers = None
    window: Annotated[int, Field(ge=1, le=1000, description="Adjacent layers patched together.")] = 1
    interventions: Edits = ()
    control: Annotated[bool, Field(description="Random cells beside.")] = False
    plot: Plot = False


SPEC = ToolSpec(
    name="patch_activations",
    title="Patch activations",
    description=(
        "Activation patching: clean states put into corrupted runs (denoising: what suffices) or the reverse (noising: "
        "what is needed), each cell of a layer × position or head grid alone. Recovery: 0 corrupted, 1 clean."
    ),
    params=PatchActivationsParams,
    result=PatchActivationsResult,
    answer=PatchActivationsAnswer,
    digest=digest,
    render=render,
    figure=figure,
    served=True,
)
