"""Loaded dictionaries of features: their names, where they come from, and what is known of one without its numbers."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from nnterp_mcp.request.arguments import LONGEST_STRING, shown
from nnterp_mcp.request.feature_sites import FEATURE_SITES, FeaturePlace, FeatureSite, place_of
from nnterp_mcp.request.vectors import ModelIdentity, VectorName

NEURONPEDIA = "neuronpedia:"
"""A source of labels that begins so names a model and a dictionary at Neuronpedia."""

DictionaryName = VectorName
"""A dictionary is named as a vector is."""


ROW_METHODS = ("decoder_row", "encoder_row")
"""The methods of make_vector that take the row of a feature, as `NAME:FEATURE` or `NAME:LAYER:FEATURE`."""

_ROW = re.compile(r"([^:]+)(?::(\d+))?:(\d+)")


def parse_row(text: str) -> tuple[str, int | None, int]:
    """The dictionary, the layer and the feature that a text names.

    Raises:
        ValueError: It has another form.
    """
    found = _ROW.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"a feature is named as NAME:FEATURE or NAME:LAYER:FEATURE, such as 'sae:5', not {shown(text)}"
        )
    name, layer, feature = found.groups()
    return name, None if layer is None else int(layer), int(feature)


UNLOAD = "unload"
"""In place of a source: the dictionaries of that name are to be forgotten."""


def _check_source(source: str) -> str:
    if "\0" in source or not source.strip():
        raise ValueError(f"source must be a folder or a Hub id with a path below it, not {shown(source)}")
    return source.strip().rstrip("/")


DictionarySource = Annotated[str, Field(min_length=1, max_length=LONGEST_STRING), AfterValidator(_check_source)]


def _check_site(site: str | None) -> FeatureSite | None:
    if site is None:
        return None
    known: dict[str, FeatureSite] = dict(zip(FEATURE_SITES, FEATURE_SITES, strict=True))
    if site in known:
        return known[site]
    named = place_of(site if "." in site else f"blocks.0.{site}")
    if named is None:
        raise ValueError(f"site must be one of {', '.join(FEATURE_SITES)}, not {shown(site)}")
    return named.site


DictionarySite = Annotated[
    str | None,
    AfterValidator(_check_site),
    WithJsonSchema({"type": "string", "description": "Hook point, if the files do not say."}),
]


_AT_NEURONPEDIA = re.compile(rf"{NEURONPEDIA}[A-Za-z0-9._-]+/[A-Za-z0-9._{{}}-]+")


def _check_labels(labels: str | None) -> str | None:
    if labels is None:
        return None
    if "\0" in labels or (labels.startswith(NEURONPEDIA) and _AT_NEURONPEDIA.fullmatch(labels) is None):
        raise ValueError(f"labels must be a file or {NEURONPEDIA}MODEL/SAE, not {shown(labels)}")
    return labels


LabelSource = Annotated[
    str | None,
    Field(min_length=1, max_length=LONGEST_STRING),
    AfterValidator(_check_labels),
    WithJsonSchema({"type": "string", "maxLength": LONGEST_STRING, "description": "File, or neuronpedia:MODEL/SAE."}),
]
"""A file of labels or a dictionary at Neuronpedia; `{layer}` stands for the layer of each of several dictionaries."""


class DictionaryLayer(BaseModel):
    """The dictionary of one layer.

    Attributes:
        layer: The layer that it reads; None for the embeddings.
        reads: The site that it reads.
        writes: The place that a transcoder writes to; None for an autoencoder.
        scale: The factor of its input that calibration found, where its files leave it out; else None.
        features: The number of its features.
        nbytes: The memory that it takes, in bytes.
        labels: Where its labels are: a file, a folder, or a dictionary at Neuronpedia.
    """

    model_config = ConfigDict(frozen=True)

    layer: int | None
    reads: FeatureSite
    writes: FeaturePlace | None = None
    scale: float | None = None
    features: int = 0
    nbytes: int = 0
    labels: str | None = None

    @property
    def place(self) -> FeaturePlace:
        """Where it reads."""
        return FeaturePlace(self.reads, self.layer)


class DictionaryCard(BaseModel):
    """The dictionaries behind a handle.

    Attributes:
        name: The handle, unique for a model.
        identity: The model's weights.
        source: The folder or the address.
        revision: The Hub's commit; None for a local folder.
        layers: The dictionaries.
        request: The parameters of load_features.
        made: Time, in ISO 8601.
    """

    name: DictionaryName
    identity: ModelIdentity
    source: str
    revision: str | None
    layers: list[DictionaryLayer]
    request: dict[str, Any]
    made: str

    def of_layer(self, layer: int | None) -> DictionaryLayer | None:
        """The dictionary of a layer, or the only one; None where there is none."""
        if layer is None:
            return self.layers[0] if len(self.layers) == 1 else None
        return next((one for one in self.layers if one.layer == layer), None)
