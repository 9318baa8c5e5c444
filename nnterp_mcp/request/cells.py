"""Cells of a patching grid and spans of tokens, as callers write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter

from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LONGEST_NAME, Given, decoded, require_at_most, shown
from nnterp_mcp.request.dictionaries import DictionaryName
from nnterp_mcp.request.positions import Layers, Positions, PositionSpec
from nnterp_mcp.request.sites import FACTS, Site

PATCHED_SITES: tuple[Site, ...] = tuple(site for site, facts in FACTS.items() if facts.patched)
"""The sites that cells have."""

_MOST_SPANS = 256
MOST_NAMED_FEATURES = 256
"""Features that a call names, at most."""

MOST_NAMED = 1000
"""Cells that a call names, at most."""

_NAMED = re.compile(r"(?:(?P<site>\w+) )?L(?P<layer>\d+)(?:H(?P<head>\d+))?(?:@(?P<span>.+))?")
_POSITIONS: TypeAdapter[tuple[PositionSpec, ...]] = TypeAdapter(Positions)


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


def _as_patched_site(site: Site | None) -> Site | None:
    if site is not None and site not in PATCHED_SITES:
        raise ValueError(f"cells have one of the sites {', '.join(PATCHED_SITES)}, not {site}")
    return site


def as_tuple(value: Any) -> Any:
    """A single item as a tuple of it."""
    return value if value is None or isinstance(value, list | tuple) else (value,)


class GivenCell(Given):
    """Cells of the grid: of a site and layers, some heads, or some positions or labels of `positions`."""

    site: Annotated[Site | None, AfterValidator(_as_patched_site)] = None
    layers: Layers
    heads: Annotated[tuple[int, ...] | None, BeforeValidator(as_tuple)] = None
    positions: Annotated[tuple[int | str, ...] | None, BeforeValidator(as_tuple)] = None

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
        BeforeValidator(as_tuple),
        Field(min_length=1, max_length=MOST_NAMED_FEATURES),
    ]
    layers: int | None = None


def as_cells(value: Any) -> Any:
    """Cells as they are validated: a head such as "L23H4" as the object that it stands for."""
    given = decoded(value)
    listed = given if isinstance(given, list | tuple) else [given]
    require_at_most(MOST_NAMED, listed, "cells")
    return [_as_cell(one) for one in listed]


def _as_cell(value: Any) -> Any:
    if not isinstance(value, str):
        features = isinstance(value, Mapping) and value.get("site") == "features"
        return GivenFeatures.model_validate(value) if features else value
    found = _NAMED.fullmatch(value)
    if found is None or (found["site"] is None and found["head"] is None):
        raise ValueError(
            f'a cell is a head such as "L23H4", a name such as "mlps_output L3@2", or an object with layers, not '
            f"{shown(value)}"
        )
    given = {"site": found["site"] or "heads_output", "layers": int(found["layer"])}
    given |= {} if found["head"] is None else {"heads": int(found["head"])}
    return given | ({} if found["span"] is None else {"positions": found["span"]})


Spans = Annotated[
    tuple[PositionSpec, ...] | dict[str, PatchedSpan],
    BeforeValidator(_as_positions),
    schemas.as_schema(
        {**schemas.POSITIONS, "maxProperties": _MOST_SPANS},
        'Tokens, or spans: {"city": {"clean": 2, "corrupted": "2:4"}}. Ablations take all together by default.',
    ),
]
"""Positions, or spans by label."""

Cells = Annotated[
    tuple[GivenCell | GivenFeatures, ...],
    BeforeValidator(as_cells),
    schemas.as_schema(
        schemas.union(schemas.array(schemas.TEXT), schemas.array(schemas.OBJECT), maxItems=MOST_NAMED),
        'Cells patched together: ["L23H4", {"site": "mlps_output", "layers": 3}], or [{"site": "features", '
        '"dictionary": NAME, "features": [5]}].',
    ),
]
"""Cells that are patched together."""
