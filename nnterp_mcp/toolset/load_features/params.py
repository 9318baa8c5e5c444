"""Arguments of `load_features`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LONGEST_RANGE
from nnterp_mcp.request.dictionaries import DictionaryName, DictionarySite, DictionarySource, LabelSource
from nnterp_mcp.request.positions import Layers

_LAYERS = schemas.union(schemas.INTEGER, schemas.TEXT, maxLength=LONGEST_RANGE)
"""The commonest forms; lists are taken too, and an agent pays for each form that is listed."""


class LoadFeaturesParams(ModelParams):
    """The dictionaries to load, and their name."""

    name: Annotated[DictionaryName, Field(description="Their name.")]
    source: Annotated[
        DictionarySource,
        Field(
            description="Folder, Hub id and path such as google/gemma-scope-2b-pt-res/layer_20, or saelens:RELEASE/ID; "
            "'unload' frees the name."
        ),
    ]
    layers: Annotated[Layers, schemas.as_schema(_LAYERS, "Layers.")] = "all"
    site: DictionarySite = None
    labels: LabelSource = None
