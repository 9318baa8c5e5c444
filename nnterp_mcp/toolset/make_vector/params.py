"""Arguments of `make_vector`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, WithJsonSchema, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LARGEST_SEED, LONGEST_NAME, LONGEST_STRING, LONGEST_TEXT, MOST_PROMPTS, decoded
from nnterp_mcp.request.dictionaries import ROW_METHODS, parse_row
from nnterp_mcp.request.fields import Plot, ProbedLayers, ProbedPositions
from nnterp_mcp.request.operations import Interventions
from nnterp_mcp.request.prompts import Prompt, PromptGroups, Prompts
from nnterp_mcp.request.targets import TokenId
from nnterp_mcp.request.vectors import VectorName

MOST_DIMENSIONS = 64
"""Those of a subspace."""

VectorMethod = Literal[
    "mean_difference",
    "principal_component",
    "activation",
    "embedding_difference",
    "unembedding_difference",
    "decoder_row",
    "encoder_row",
    "alignment_search",
    "random",
    "file",
    "delete",
]

_NEEDS: dict[VectorMethod, tuple[str, ...]] = {
    "mean_difference": ("positive", "negative"),
    "principal_component": ("positive", "negative"),
    "activation": ("positive",),
    "embedding_difference": ("positive",),
    "unembedding_difference": ("positive",),
    "decoder_row": ("positive",),
    "encoder_row": ("positive",),
    "alignment_search": ("positive", "negative", "layers"),
    "random": ("norm",),
    "file": ("file",),
    "delete": (),
}
_TAKES: dict[VectorMethod, tuple[str, ...]] = {
    "mean_difference": ("run", "layers", "positions", "norm", "interventions"),
    "principal_component": ("run", "layers", "positions", "norm", "interventions"),
    "activation": ("run", "layers", "positions", "norm", "interventions"),
    "embedding_difference": ("negative", "norm"),
    "unembedding_difference": ("negative", "lens", "norm"),
    "decoder_row": ("norm",),
    "encoder_row": ("norm",),
    "alignment_search": ("positions", "answers", "dimensions", "seed", "interventions"),
    "random": ("seed",),
    "file": ("layers", "norm"),
    "delete": (),
}


_SIDES = ("positive", "negative")
_PROMPTS: TypeAdapter[tuple[Prompt, ...]] = TypeAdapter(Prompts)
_GROUPS: TypeAdapter[dict[str, tuple[Prompt, ...]]] = TypeAdapter(PromptGroups)


def _as_prompt_set(value: Any) -> tuple[Prompt, ...]:
    return _PROMPTS.validate_python(value) if value not in (None, (), [], "[]") else ()


_PROMPT_SET = schemas.union(
    schemas.OBJECT,
    schemas.TEXT,
    schemas.array(schemas.TEXT),
    schemas.array(schemas.array(schemas.OBJECT)),
    maxLength=LONGEST_TEXT,
    maxItems=MOST_PROMPTS,
)
"""A text, a list of texts or of chats, or a named set; one chat alone is accepted too."""

_PromptSet = Annotated[tuple[Prompt, ...], BeforeValidator(_as_prompt_set), WithJsonSchema(_PROMPT_SET)]
"""Prompts, or none where a method needs none."""


_Answer = Annotated[str, Field(min_length=1, max_length=LONGEST_STRING)] | TokenId
_ANSWERS: schemas.Schema = schemas.array(schemas.TEXT) | {"maxItems": MOST_PROMPTS}


class MakeVectorParams(ModelParams):
    """The vector to make, and the prompts or tokens to make it of."""

    name: Annotated[VectorName, Field(description="Its name.")]
    method: Annotated[VectorMethod, Field(description="delete removes it.")]
    prompts: Annotated[
        PromptGroups | None,
        schemas.as_schema(schemas.OBJECT, 'Both groups by name, or {"set": NAME}.'),
    ] = None
    positive: Annotated[
        _PromptSet,
        Field(description="Prompts to point towards; one text for tokens; 'DICTIONARY:5' for a row."),
    ] = ()
    negative: Annotated[_PromptSet, Field(description="Prompts to point away from, or by pair.")] = ()
    run: Annotated[
        str | None,
        Field(max_length=LONGEST_NAME, description="A collect_activations run of both groups."),
    ] = None
    layers: ProbedLayers = "all"
    positions: ProbedPositions = ("last",)
    norm: Annotated[float | None, Field(gt=0, description="Scales it; random needs it.")] = None
    answers: Annotated[
        tuple[_Answer, ...],
        BeforeValidator(decoded),
        Field(max_length=MOST_PROMPTS),
        schemas.as_schema(_ANSWERS, "By pair; by default those to `negative`."),
    ] = ()
    dimensions: Annotated[int, Field(ge=1, le=MOST_DIMENSIONS, description="Of the subspace.")] = 1
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED, description="Random seed.")] = 0
    lens: Annotated[
        str | None,
        Field(min_length=1, max_length=LONGEST_STRING, description="For unembedding_difference."),
    ] = None
    file: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=LONGEST_STRING,
            description="JSON or safetensors of one direction, or one per layer.",
        ),
    ] = None
    interventions: Interventions = ()
    plot: Plot = False

    @model_validator(mode="before")
    @classmethod
    def _take_groups(cls, given: Any) -> Any:
        """Groups of prompts as positive and negative ones: by these names, or else in their order."""
        value = decoded(given)
        if not isinstance(value, Mapping) or value.get("prompts") is None:
            return value
        if value.get("positive") or value.get("negative"):
            raise ValueError("give either prompts, by group, or positive and negative")
        groups = _GROUPS.validate_python(value["prompts"])
        if len(groups) > 2:
            raise ValueError(f"a vector is made of one group of prompts or two, and {len(groups)} came")
        named = (
            groups if groups.keys() == {"positive", "negative"} else dict(zip(_SIDES, groups.values(), strict=False))
        )
        return {name: part for name, part in value.items() if name != "prompts"} | named

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        recalled = ("positive", "negative") if self.run is not None else ()
        missing = [name for name in _NEEDS[self.method] if getattr(self, name) in (None, ()) and name not in recalled]
        if self.method == "alignment_search" and self.layers == "all":
            missing.append("layers, each of which is a search of its own")
        if missing:
            raise ValueError(f"the method {self.method} needs {' and '.join(missing)}")
        taken = {"name", "method", "model", "plot", *_NEEDS[self.method], *_TAKES[self.method]}
        fields = type(self).model_fields
        odd = [name for name in fields if name not in taken and getattr(self, name) != fields[name].default]
        if odd:
            raise ValueError(f"the method {self.method} takes no {' and no '.join(odd)}")
        if self.run is not None and self.positions != ("last",):
            raise ValueError(f"positions was settled when {self.run} collected its states: leave it out")
        if self.run is not None and self.interventions:
            raise ValueError(f"interventions were settled when {self.run} collected its states: leave them out")
        if self.method.endswith("embedding_difference"):
            self._check_texts()
        if self.method in ROW_METHODS:
            self._check_texts()
            parse_row(str(self.positive[0]))
        return self

    def _check_texts(self) -> None:
        for prompts in (self.positive, self.negative):
            if len(prompts) > 1 or not all(isinstance(prompt, str) for prompt in prompts):
                raise ValueError(f"the method {self.method} takes one text on either side, such as ' love' and ' hate'")
