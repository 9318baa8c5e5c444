"""Arguments of `make_vector`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, WithJsonSchema, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LARGEST_SEED, LONGEST_NAME, LONGEST_STRING, decoded
from nnterp_mcp.request.dictionaries import ROW_METHODS, parse_row
from nnterp_mcp.request.fields import Plot, ProbedLayers, ProbedPositions
from nnterp_mcp.request.prompts import Prompt, PromptGroups, Prompts
from nnterp_mcp.request.vectors import VectorName

VectorMethod = Literal[
    "mean_difference",
    "principal_component",
    "activation",
    "embedding_difference",
    "unembedding_difference",
    "decoder_row",
    "encoder_row",
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
    "random": ("norm",),
    "file": ("file",),
    "delete": (),
}
_TAKES: dict[VectorMethod, tuple[str, ...]] = {
    "mean_difference": ("run", "layers", "positions", "norm"),
    "principal_component": ("run", "layers", "positions", "norm"),
    "activation": ("run", "layers", "positions", "norm"),
    "embedding_difference": ("negative", "norm"),
    "unembedding_difference": ("negative", "lens", "norm"),
    "decoder_row": ("norm",),
    "encoder_row": ("norm",),
    "random": ("seed",),
    "file": ("layers", "norm"),
    "delete": (),
}


_SIDES = ("positive", "negative")
_PROMPTS: TypeAdapter[tuple[Prompt, ...]] = TypeAdapter(Prompts)
_GROUPS: TypeAdapter[dict[str, tuple[Prompt, ...]]] = TypeAdapter(PromptGroups)


def _as_prompt_set(value: Any) -> tuple[Prompt, ...]:
    return _PROMPTS.validate_python(value) if value not in (None, (), [], "[]") else ()


_PromptSet = Annotated[tuple[Prompt, ...], BeforeValidator(_as_prompt_set), WithJsonSchema(schemas.PROMPTS)]
"""Prompts, or none where a method needs none."""


class MakeVectorParams(ModelParams):
    """The vector to make, and the prompts or tokens to make it of."""

    name: Annotated[VectorName, Field(description="The vector's name.")]
    method: Annotated[VectorMethod, Field(description="See above; delete removes the vector.")]
    prompts: Annotated[
        PromptGroups | None,
        schemas.as_schema(schemas.OBJECT, 'Both groups: {"positive": [...], "negative": [...]}, or {"set": NAME}.'),
    ] = None
    positive: Annotated[
        _PromptSet,
        Field(description="Prompts to point towards; one text for (un)embedding_difference; for a row 'DICTIONARY:5'."),
    ] = ()
    negative: Annotated[
        _PromptSet, Field(description="Prompts to point away from; as many for principal_component.")
    ] = ()
    run: Annotated[
        str | None,
        Field(max_length=LONGEST_NAME, description="A collect_activations run with groups positive and negative."),
    ] = None
    layers: ProbedLayers = "all"
    positions: ProbedPositions = ("last",)
    norm: Annotated[float | None, Field(gt=0, description="Norm to scale the direction to; random needs it.")] = None
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED, description="Seed of random.")] = 0
    lens: Annotated[
        str | None,
        Field(min_length=1, max_length=LONGEST_STRING, description="Lens that reads unembedding_difference, by layer."),
    ] = None
    file: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=LONGEST_STRING,
            description="JSON or safetensors file of one direction, or one per layer.",
        ),
    ] = None
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
        missing = [name for name in _NEEDS[self.method] if not getattr(self, name) and name not in recalled]
        if missing:
            raise ValueError(f"the method {self.method} needs {' and '.join(missing)}")
        taken = {"name", "method", "model", "plot", *_NEEDS[self.method], *_TAKES[self.method]}
        fields = type(self).model_fields
        odd = [name for name in fields if name not in taken and getattr(self, name) != fields[name].default]
        if odd:
            raise ValueError(f"the method {self.method} takes no {' and no '.join(odd)}")
        if self.run is not None and self.positions != ("last",):
            raise ValueError(f"positions was settled when {self.run} collected its states: leave it out")
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
