"""Arguments of `attribute`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.corruption import Ablated, CorruptedField
from nnterp_mcp.request.dictionaries import DictionaryName
from nnterp_mcp.request.fields import Plot
from nnterp_mcp.request.operations import Interventions
from nnterp_mcp.request.positions import Layers
from nnterp_mcp.request.prompts import Prompts
from nnterp_mcp.request.targets import TargetSets

AttributionMethod = Literal["direct", "gradient", "integrated", "patching"]
By = Literal["layer", "sublayer", "head", "source_token", "neuron", "token", "feature"]

OFFERED: dict[AttributionMethod, tuple[By, ...]] = {
    "direct": ("head", "source_token", "layer", "sublayer", "neuron", "feature"),
    "gradient": ("token", "feature"),
    "integrated": ("token",),
    "patching": ("layer", "sublayer", "head", "neuron", "feature"),
}
"""To what each method attributes; the first goes without saying."""


_MOST_CATEGORIES = 6


class AttributeParams(ModelParams):
    """The answer to attribute, the method, and the parts to which it is attributed."""

    prompts: Annotated[Prompts, schemas.as_schema(schemas.PROMPTS, "A text, a chat or a list of these.")]
    targets: TargetSets
    method: Annotated[
        AttributionMethod,
        Field(description="See above."),
    ] = "direct"
    by: Annotated[
        By | None,
        Field(description="Parts: by default head (direct), layer (patching) or token; source_token is for direct."),
    ] = None
    dictionary: Annotated[DictionaryName | None, Field(description="For by feature, from load_features.")] = None
    layers: Annotated[Layers, schemas.as_schema(schemas.INDICES, "A layer, a list, a range or 'all'.")] = "all"
    corrupted: Annotated[
        CorruptedField | None,
        schemas.as_schema(
            schemas.PROMPTS,
            'For patching: prompts, or {"replace": "France", "with": "Spain"}.',
        ),
    ] = None
    steps: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="Points at which integrated takes gradients.",
        ),
    ] = 128
    top_k: Annotated[int, Field(ge=1, le=20, description="Parts shown at most, the largest in size first.")] = 10
    interventions: Interventions = ()
    plot: Plot = False

    @property
    def parts(self) -> By:
        """To what it is attributed."""
        if self.by is None and self.dictionary is not None:
            return "feature"
        return self.by or OFFERED[self.method][0]

    @model_validator(mode="after")
    def _fits(self) -> AttributeParams:
        if self.parts not in OFFERED[self.method]:
            offered = ", ".join(OFFERED[self.method])
            raise ValueError(f"method {self.method} attributes by {offered}, not by {self.parts}")
        if (self.parts == "feature") != (self.dictionary is not None):
            raise ValueError("by feature and dictionary go together: the name that load_features gave it")
        most = _MOST_CATEGORIES if self.method == "direct" else 2
        if not 1 <= len(self.targets[0]) <= most:
            raise ValueError(
                f"method {self.method} takes 1 to {most} target categories, the answer first, and "
                f'{len(self.targets[0])} came: {{"answer": "Paris", "wrong": "Rome"}}'
            )
        if (self.corrupted is not None) != (self.method == "patching"):
            needed = "needs corrupted prompts" if self.corrupted is None else "takes no corrupted: method patching does"
            raise ValueError(f"method {self.method} {needed}")
        if isinstance(self.corrupted, Ablated):
            raise ValueError('method patching takes no {"ablate": …}: patch_activations does')
        if self.interventions and self.method == "patching":
            raise ValueError("method patching takes no interventions: direct, gradient and integrated do")
        return self
