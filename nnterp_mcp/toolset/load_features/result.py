"""Result and answer of `load_features`."""

from __future__ import annotations

from nnterp_mcp.contract import Result, ResultPart, TableAnswer


class FeatureFit(ResultPart):
    """The fit of a dictionary at a hook point.

    Attributes:
        place: What it reads, and where a transcoder writes.
        l0: Active features at a token, in the mean.
        fvu: The fraction of variance unexplained; None for a layer of a cross-layer transcoder, which alone
            reconstructs nothing.
        cosine: Between states and reconstructions, in the mean.
    """

    place: str
    l0: float
    fvu: float | None
    cosine: float | None


class LoadedLayer(ResultPart):
    """A dictionary, and how it fits the model.

    Attributes:
        layer: The layer that it reads; None for the embeddings.
        layout: Whose layout its files have.
        activation: Its activation function.
        features: The number of its features.
        trained_on: The model that its files name.
        declared_l0: The active features that its files declare.
        fit: How it fits where it reads.
        silent: The share of features that are active at no token.
        nbytes: The memory that it takes, in bytes.
        loss: The model's mean loss, in nats.
        spliced: With the reconstruction in the states' place.
        zeroed: With zeros in the states' place.
        recovered: The share of the harm of zeroing that the reconstruction avoids.
        scale: The factor of its input that was found here, where its files leave it out.
        faults: What speaks against the place.
        here: The FVU where it reads on the sample of tokens on which hook points are compared.
        better: It fits the first place of `elsewhere` clearly better.
        elsewhere: How it fits on that sample at other places, the best first.
        labels: The source of its features' labels; None where nobody says.
    """

    layer: int | None
    layout: str
    activation: str
    features: int
    trained_on: str | None
    declared_l0: float | None
    fit: FeatureFit
    silent: float
    nbytes: int = 0
    loss: float | None
    spliced: float | None
    zeroed: float | None
    recovered: float | None
    scale: float | None
    faults: list[str]
    here: float | None = None
    better: bool = False
    elsewhere: list[FeatureFit]
    labels: str | None = None


class LoadFeaturesResult(Result):
    """The dictionaries under a name.

    Attributes:
        model: The model's handle.
        name: The name.
        source: The folder or the address.
        revision: The Hub's commit.
        tokens: The tokens that they were checked on.
        layers: The dictionaries.
        freed: The bytes of memory that were freed, where the name was unloaded.
    """

    model: str
    name: str
    source: str
    revision: str | None
    tokens: int
    layers: list[LoadedLayer]
    freed: int | None = None


class LoadFeaturesAnswer(TableAnswer):
    """The dictionaries, and how they fit."""
