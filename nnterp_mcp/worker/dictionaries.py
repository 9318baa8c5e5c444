"""The dictionaries of features of a worker's model: found, checked against the model, and read when they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnterp_mcp.engine.planning.features import FeatureBasis
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.basis import basis_of
from nnterp_mcp.experiments.features.dictionary import Dictionary
from nnterp_mcp.experiments.features.published import Published
from nnterp_mcp.experiments.features.readings import require_feature_place
from nnterp_mcp.experiments.features.registry import PREFIX, find_registered
from nnterp_mcp.experiments.features.shelf import Shelf
from nnterp_mcp.experiments.features.sources import find_source
from nnterp_mcp.formatting import ranges
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.access import admit_dictionary
from nnterp_mcp.request.feature_sites import FeaturePlace, FeatureSite
from nnterp_mcp.request.vectors import ModelIdentity
from nnterp_mcp.runs.dictionaries import DictionaryStore
from nnterp_mcp.settings import Settings
from nnterp_mcp.worker.saelens_registry import find_registry


def _silent(message: str) -> None:
    pass


@dataclass(frozen=True)
class LoadedDictionary:
    """A dictionary in memory.

    Attributes:
        name: Its name.
        dictionary: The dictionary.
        place: The place that it reads.
        writes: The place that a transcoder writes to; None for an autoencoder.
        labels: Where the labels of its features are; None where nobody says.
    """

    name: str
    dictionary: Dictionary
    place: FeaturePlace
    writes: FeaturePlace | None
    labels: str | None

    def require(self, features: Sequence[int]) -> None:
        """Refuses features that it does not have.

        Raises:
            InvalidRequest: One of them is beyond its last.
        """
        for feature in features:
            if feature >= self.dictionary.latents:
                raise InvalidRequest(
                    f"there is no feature {feature}: {self.name} has features 0 to {self.dictionary.latents - 1}."
                )

    def __str__(self) -> str:
        """Its places as answers name them."""
        return str(self.place) if self.writes is None else f"{self.place}, to {self.writes.site}"


@dataclass(frozen=True)
class Dictionaries:
    """The dictionaries of one loaded model.

    Attributes:
        model: The model.
        identity: Its weights.
        handle: Its handle, for errors.
        settings: The server's settings.
        shelf: Those in memory.
    """

    model: StandardizedTransformer
    identity: ModelIdentity
    handle: str
    settings: Settings
    shelf: Shelf = field(default_factory=Shelf)

    @property
    def store(self) -> DictionaryStore:
        """The cards of loaded dictionaries of every model."""
        return DictionaryStore(self.settings.data / "dictionaries")

    def publish(
        self, source: str, layers: Sequence[int] | None, tell: Callable[[str], None]
    ) -> tuple[list[Published], str, str | None]:
        """The dictionaries behind a source that this server may read.

        Args:
            source: A folder, a Hub id with a path below it, or a release and id of SAELens' registry; `@` and a
                branch, tag or commit may follow.
            layers: The layers that are wanted; None for all.
            tell: Called with the current step.

        Returns:
            The dictionaries, the resolved folder or the address, and the Hub's commit.

        Raises:
            Forbidden: The server does not allow it.
            InvalidRequest: There are none.
            UnknownModel: There is no such repository.
        """
        listed = None
        if source.startswith(PREFIX):
            listed = find_registered(source, find_registry(self.settings.saelens_registry, self.settings.cache))
            source = listed.address
        source, _, revision = source.partition("@") if not Path(source).exists() else (source, "", "")
        local = admit_dictionary(source, self.settings.allowed_models, self.settings.folders)
        found, commit = find_source(source, revision or None, local, layers, tell)
        resolved = source if local is None else str(local)
        if listed is not None and len(found) == 1:
            found = [replace(found[0], neuronpedia=listed.neuronpedia)]
        return [one for one in found if layers is None or one.layer in layers], resolved, commit

    def place(self, found: Published, site: FeatureSite | None) -> Published:
        """A dictionary with the place that it reads, which the model must have.

        Args:
            found: The dictionary.
            site: The site that the caller names, in place of that of the files.

        Raises:
            InvalidRequest: Neither the files nor the caller say where it reads, or the model has fewer layers.
            Unsupported: The layer has no such site.
        """
        place = found.reads
        if place is None:
            raise InvalidRequest(
                f"the files of {found.name} do not say which layer and site it reads.",
                "Name its folder with the layer in it, such as layer_12, and give site.",
            )
        place = FeaturePlace(site, place.layer) if site is not None else place
        writes = found.writes
        if found.transcodes and writes is None:
            writes = FeaturePlace("mlps_output", place.layer)
        for one in (place, *([writes] if writes else [])):
            require_feature_place(self.model, one)
        return replace(found, reads=place, writes=writes)

    def load(self, name: str, found: Published, scale: float | None) -> Dictionary:
        """A dictionary in memory, its input's factor folded in.

        Args:
            name: The name that it is kept under.
            found: The dictionary.
            scale: The factor, where its files leave it out.

        Raises:
            InvalidRequest: Its files cannot be read.
            OutOfMemory: It does not fit.
        """

        def load() -> Dictionary:
            made = found.load()
            return made if scale is None else made.scaled(scale)

        return self.shelf.take((name, found.layer), self.model, load)

    def find(self, name: str, layer: int | None, tell: Callable[[str], None] = _silent) -> LoadedDictionary:
        """A loaded dictionary by its name, read again where it is not in memory.

        Args:
            name: The name.
            layer: The layer, where the name has several.
            tell: Called with the current step.

        Raises:
            InvalidRequest: There is none, or the layer is not said or not there.
        """
        card = self.store.find(name, self.identity, self.handle)
        entry = card.of_layer(layer)
        if entry is None:
            there = ranges([one.layer for one in card.layers if one.layer is not None])
            if layer is None:
                raise InvalidRequest(f"{name} has several layers: name one of {there}.")
            raise InvalidRequest(f"{name} has no layer {layer}: it has {there}.")
        wanted = None if entry.layer is None else [entry.layer]

        def load() -> Dictionary:
            # The folder was allowed when the card was written, and is no name that a caller gives now.
            local = Path(card.source) if Path(card.source).is_absolute() else None
            found, _ = find_source(card.source, card.revision, local, wanted, tell)
            made = next(one for one in found if one.layer == entry.layer).load()
            return made if entry.scale is None else made.scaled(entry.scale)

        made = self.shelf.take((name, entry.layer), self.model, load)
        return LoadedDictionary(name, made, entry.place, entry.writes, entry.labels)

    def find_basis(self, name: str, layer: int | None) -> FeatureBasis:
        """A loaded dictionary, as interventions see it.

        Raises:
            InvalidRequest: There is none, or the layer is not said or not there.
            Unsupported: The place that it reconstructs is only read.
        """
        loaded = self.find(name, layer)
        return basis_of(self.model, name, loaded.dictionary, loaded.place, loaded.writes)
