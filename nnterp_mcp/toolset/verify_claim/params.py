"""Arguments of `verify_claim`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import MOST_PROMPTS, Given, decoded, require_at_most, shown
from nnterp_mcp.request.cells import MOST_NAMED, MOST_NAMED_FEATURES, GivenCell, Spans, as_cells, as_tuple
from nnterp_mcp.request.corruption import Ablated, CorruptedField, Noise
from nnterp_mcp.request.dictionaries import DictionaryName
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.named_sets import prompts_of
from nnterp_mcp.request.operations import Interventions, Vector
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


class ClaimedFeatures(Given):
    """Features of a loaded dictionary.

    Attributes:
        dictionary: The dictionary's name.
        features: The features.
        layers: The dictionary's layer, where several have this name.
        site: The word by which cells of features are told apart.
        positions: The spans at which they are exchanged; all tokens but the first by default.
    """

    dictionary: DictionaryName
    features: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        BeforeValidator(as_tuple),
        Field(min_length=1, max_length=MOST_NAMED_FEATURES),
    ]
    layers: int | None = None
    site: Literal["features"] = "features"
    positions: tuple[int | str, ...] | None = None


def _as_claim(value: Any) -> Any:
    given = decoded(value)
    if isinstance(given, ClaimedSubspace | ClaimedFeatures):
        return given
    features = [one for one in _listed(given) if isinstance(one, Mapping) and _is_features(one)]
    if features:
        return _join_features(features, others=len(_listed(given)) - len(features))
    if isinstance(given, Mapping) and ("vector" in given or "rows" in given):
        return ClaimedSubspace.model_validate(given)
    return as_cells(given)


def _listed(given: Any) -> Sequence[Any]:
    return given if isinstance(given, list | tuple) else [given]


def _join_features(given: Sequence[Mapping[str, Any]], others: int) -> ClaimedFeatures:
    """Cells of features as one claim."""
    first, *more = (ClaimedFeatures.model_validate(one) for one in given)
    if others or any(one.model_copy(update={"features": first.features}) != first for one in more):
        raise ValueError("features are claimed of one dictionary and at the same positions, without other cells")
    features = dict.fromkeys(feature for one in (first, *more) for feature in one.features)
    return first.model_copy(update={"features": tuple(features)})


def _is_features(given: Mapping[str, Any]) -> bool:
    return "dictionary" in given or "features" in given or given.get("site") == "features"


def _as_origin(value: Any) -> tuple[str, ...]:
    given = decoded(prompts_of(value))
    listed = [text for one in _listed(given) for text in _texts(prompts_of(one))]
    require_at_most(MOST_PROMPTS, listed, "found_on")
    if not listed or not all(isinstance(one, str) and one for one in listed):
        raise ValueError(f'found_on must be "{THEORY}", run ids, names of vectors or prompts, not {shown(value)}')
    return tuple(listed)


def _texts(given: Any) -> list[Any]:
    """The texts of an origin: of the prompts of a set, the messages of a chat, or the one text that it is."""
    if isinstance(given, list | tuple):
        return [text for part in given for text in _texts(part)]
    return [given["content"]] if isinstance(given, Mapping) and "content" in given else [given]


_TEXTS: schemas.Schema = schemas.array(schemas.TEXT) | {"maxItems": MOST_PROMPTS}

_Claim = Annotated[
    tuple[GivenCell, ...] | ClaimedSubspace | ClaimedFeatures,
    BeforeValidator(_as_claim),
    schemas.as_schema(
        schemas.union(schemas.OBJECT, schemas.array(schemas.TEXT), maxItems=MOST_NAMED),
        '["L23H4", "mlps_output L3@city"], {"vector": NAME, "layer": 3} or "rows", {"dictionary": NAME, '
        '"features": 5}.',
    ),
]
_Origin = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_origin),
    schemas.as_schema(_TEXTS, 'What found the claim, left out: runs, vectors, prompts or "theory".'),
]

Predicted = Literal["drives", "necessary", "sufficient", "opposes"]
"""The claim: that a component is necessary and sufficient, either, or both for the opposite."""


class VerifyClaimParams(ModelParams):
    """The claim, the behaviour, and how the claim was found."""

    claim: _Claim
    clean: Annotated[Prompts, schemas.as_schema(_TEXTS, "4 or more not in found_on.")]
    found_on: _Origin
    corrupted: Annotated[
        CorruptedField | None,
        schemas.as_schema(
            schemas.union(schemas.OBJECT, schemas.array(schemas.TEXT), maxItems=MOST_PROMPTS),
            'Prompts; {"replace": "France", "with": "Spain"}; or none for directions.',
        ),
    ] = None
    targets: Annotated[
        TargetSets, schemas.as_schema(schemas.OBJECT, '{"answer": "Paris", "wrong": "Rome"} or a list.')
    ] = Field(default_factory=lambda: ({},))
    predicts: Annotated[Predicted, Field(description="drives is both.")] = "drives"
    control_prompts: Annotated[
        Prompts | tuple[()],
        schemas.as_schema(_TEXTS, "Without the behaviour."),
    ] = ()
    positions: Annotated[Spans, schemas.as_schema(schemas.OBJECT, 'Spans: {"city": {"clean": 2, "corrupted": 3}}.')] = (
        Field(default_factory=lambda: ("all",))
    )
    interventions: Interventions = ()
    plot: Plot = False

    @property
    def alone(self) -> bool:
        """The prompts have no corrupted ones."""
        return self.corrupted is None

    @model_validator(mode="after")
    def _fits(self) -> VerifyClaimParams:
        given = self.corrupted
        if given is None:
            self._require_alone()
        if isinstance(given, Noise) or (isinstance(given, Ablated) and given.ablate != "resample"):
            raise ValueError(
                'corrupted must be prompts, {"replace": …, "with": …} or {"ablate": "resample"}: a claim is tested '
                "with states of other prompts, and with position-wise means in any case"
            )
        return self

    def _require_alone(self) -> None:
        if isinstance(self.claim, tuple):
            raise ValueError(
                "heads and sublayers are exchanged for states of other prompts: give corrupted, such as "
                '{"ablate": "resample"} for those of the other clean prompts'
            )
        if not all(self.targets):
            raise ValueError("without corrupted prompts a behaviour is a metric of targets: give targets")
        if self.predicts != "necessary" and not self.control_prompts:
            raise ValueError(
                "without corrupted prompts a direction is added in control_prompts, which do not show the behaviour: "
                'give some, or say predicts="necessary"'
            )
        if self.control_prompts and any(one != self.targets[0] for one in self.targets):
            raise ValueError("targets that differ between prompts cannot be followed in control_prompts: give one map")
