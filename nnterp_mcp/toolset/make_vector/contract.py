"""`make_vector`: what it takes and what it answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, WithJsonSchema, model_validator

from nnterp_mcp.contract import Answer, Cell, ModelParams, Result, Table, TableField, ToolSpec
from nnterp_mcp.render import in_force, lines, number, plural, spread, table
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LARGEST_SEED, LONGEST_NAME, LONGEST_STRING
from nnterp_mcp.request.fields import Prompt, Prompts
from nnterp_mcp.runs.vectors import VectorCard, VectorName
from nnterp_mcp.toolset.collect_activations.contract import ProbedLayers, ProbedPositions

_LAYERS = 16
"""Layers that an answer shows."""

_COARSE = 5
"""Prompts a side below which the figures say little."""

Method = Literal[
    "mean_difference",
    "principal_component",
    "activation",
    "embedding_difference",
    "unembedding_difference",
    "random",
    "file",
    "delete",
]

_NEEDS: dict[Method, tuple[str, ...]] = {
    "mean_difference": ("positive", "negative"),
    "principal_component": ("positive", "negative"),
    "activation": ("positive",),
    "embedding_difference": ("positive",),
    "unembedding_difference": ("positive",),
    "random": ("norm",),
    "file": ("file",),
    "delete": (),
}
_TAKES: dict[Method, tuple[str, ...]] = {
    "mean_difference": ("run", "layers", "positions", "norm"),
    "principal_component": ("run", "layers", "positions", "norm"),
    "activation": ("run", "layers", "positions", "norm"),
    "embedding_difference": ("negative", "norm"),
    "unembedding_difference": ("negative", "norm"),
    "random": ("seed",),
    "file": ("layers", "norm"),
    "delete": (),
}


_PROMPTS: TypeAdapter[tuple[Prompt, ...]] = TypeAdapter(Prompts)


def _as_prompt_set(value: Any) -> tuple[Prompt, ...]:
    return _PROMPTS.validate_python(value) if value not in (None, (), [], "[]") else ()


PromptSet = Annotated[tuple[Prompt, ...], BeforeValidator(_as_prompt_set), WithJsonSchema(schemas.PROMPTS)]
"""Prompts, or none where a method needs none."""


class MakeVectorParams(ModelParams):
    """What to make, and of what."""

    name: Annotated[VectorName, Field(description="Letters, digits, . _ -")]
    method: Annotated[Method, Field(description="See above.")]
    positive: Annotated[PromptSet, Field(description="Prompts to point towards; (un)embedding_: one text.")] = ()
    negative: Annotated[PromptSet, Field(description="Prompts to point away from; principal_component: as many.")] = ()
    run: Annotated[
        str | None, Field(max_length=LONGEST_NAME, description="A collect_activations; positive, negative: its groups.")
    ] = None
    layers: ProbedLayers = "all"
    positions: ProbedPositions = ("last",)
    norm: Annotated[float | None, Field(gt=0, description="Length to scale to; random needs it.")] = None
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED, description="Of random.")] = 0
    file: Annotated[
        str | None,
        Field(
            min_length=1, max_length=LONGEST_STRING, description="JSON or safetensors: one direction, or one per layer."
        ),
    ] = None

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        recalled = ("positive", "negative") if self.run is not None else ()
        missing = [name for name in _NEEDS[self.method] if not getattr(self, name) and name not in recalled]
        if missing:
            raise ValueError(f"the method {self.method} needs {' and '.join(missing)}")
        taken = {"name", "method", "model", *_NEEDS[self.method], *_TAKES[self.method]}
        fields = type(self).model_fields
        odd = [name for name in fields if name not in taken and getattr(self, name) != fields[name].default]
        if odd:
            raise ValueError(f"the method {self.method} takes no {' and no '.join(odd)}")
        if self.run is not None and self.positions != ("last",):
            raise ValueError(f"positions was settled when {self.run} collected its states: leave it out")
        if self.method.endswith("embedding_difference"):
            self._check_texts()
        return self

    def _check_texts(self) -> None:
        for prompts in (self.positive, self.negative):
            if len(prompts) > 1 or not all(isinstance(prompt, str) for prompt in prompts):
                raise ValueError(f"the method {self.method} takes one text on either side, such as ' love' and ' hate'")


class DirectionFacts(BaseModel):
    """One direction, at one layer or at any.

    Attributes:
        layer: The layer; None where it serves at any.
        norm: Its length.
        stream: Mean length of the states that it was made from.
        positive: Mean projection of the positive set on the direction's unit vector.
        negative: Of the negative set.
        effect: Cohen's d between these, on the prompts that made it.
        held_out: The chance that a positive prompt projects further than a negative one, both unseen.
        explained: The share of the pairs' squared differences along a principal component.
    """

    model_config = ConfigDict(extra="forbid")

    layer: int | None
    norm: float
    stream: float | None = None
    positive: float | None = None
    negative: float | None = None
    effect: float | None = None
    held_out: float | None = None
    explained: float | None = None


class MakeVectorResult(Result):
    """What was made or deleted, and what had that name before.

    Attributes:
        model: The model's handle.
        card: What is known of the vector.
        deleted: Whether it is gone now.
        replaced: When the vector was made that had that name before.
        prompts: How many prompts each set has that it was made of.
        interventions: What was in force when their states were read.
        directions: By layer.
    """

    model: str
    card: VectorCard
    deleted: bool = False
    replaced: str | None = None
    prompts: list[int] = Field(default_factory=list[int])
    interventions: list[str] = Field(default_factory=list[str])
    directions: list[DirectionFacts] = Field(default_factory=list[DirectionFacts])


class MakeVectorAnswer(Answer):
    """The vector as an agent sees it."""

    model: str
    vector: Annotated[str, Field(description="The name for later calls.")]
    truncated: bool
    table: TableField


def digest(result: MakeVectorResult) -> MakeVectorAnswer:
    """The directions by layer, the best one among them."""
    rows = result.directions
    best = _best(result)
    marks = [0, len(rows) - 1] if best is None else [rows.index(best), 0, len(rows) - 1]
    shown = [rows[index] for index in spread(range(len(rows)), marks, _LAYERS)]
    return MakeVectorAnswer(
        finding=_finding(result, best),
        notes=_notes(result, len(rows) - len(shown)),
        model=result.model,
        vector=result.card.name,
        truncated=len(shown) < len(rows),
        table=_table(shown),
    )


def _best(result: MakeVectorResult) -> DirectionFacts | None:
    """The layer at which unseen prompts are told apart best, the middle one of equals."""
    rated = [facts for facts in result.directions if facts.held_out is not None]
    top = max((facts.held_out or 0 for facts in rated), default=0)
    equals = [facts for facts in rated if facts.held_out == top]
    return equals[len(equals) // 2] if equals else None


def _finding(result: MakeVectorResult, best: DirectionFacts | None) -> str:
    card = result.card
    if result.deleted:
        return f"The vector {card.name} ({card.method}) of {result.model} is deleted."
    rows = result.directions
    norms = [number(norm) for norm in (min(card.norms), max(card.norms))]
    where = (
        f"{plural(len(rows), 'layer')}, norm {norms[0]} to {norms[1]}" if card.layers else f"any layer, norm {norms[0]}"
    )
    made = f"The vector {card.name} of {result.model} is made ({card.method}; {where})"
    if best is None or best.held_out is None:
        return f"{made}."
    chance = "no better than chance" if best.held_out <= 0.5 else f"{number(best.held_out)} (chance: 0.5)"
    return (
        f"{made}. Of unseen prompts, a positive one projects further on it than a negative one with probability "
        f"{chance} at layer {best.layer}{_choice(result)}."
    )


def _choice(result: MakeVectorResult) -> str:
    """That the layer was picked by this very figure."""
    return f", the best of {len(result.directions)}" if len(result.directions) > 1 else ""


def _notes(result: MakeVectorResult, hidden: int) -> list[str]:
    notes = [f"It replaces a vector of that name, made {result.replaced}."] if result.replaced else []
    if any(facts.effect is not None for facts in result.directions):
        notes.append(
            "d is measured on the very prompts that made the vector and is large even for sets that differ in nothing; "
            "held out is not. Neither shows that the model uses the direction: steer with control=true does."
        )
    if len(result.prompts) == 2 and min(result.prompts) < _COARSE:
        notes.append(f"With {result.prompts[0]} and {result.prompts[1]} prompts these figures are coarse.")
    notes += in_force(result.interventions)
    if hidden:
        notes.append(f"{plural(hidden, 'layer')} not shown; all are kept.")
    return notes


def _table(shown: list[DirectionFacts]) -> Table:
    columns: dict[str, list[Cell]] = {
        "layer": [facts.layer for facts in shown],
        "norm": [facts.norm for facts in shown],
        "norm / stream": [facts.norm / facts.stream if facts.stream else None for facts in shown],
        "positive mean": [facts.positive for facts in shown],
        "negative mean": [facts.negative for facts in shown],
        "d": [facts.effect for facts in shown],
        "held out": [facts.held_out for facts in shown],
        "explained": [facts.explained for facts in shown],
    }
    kept = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    return Table(columns=list(kept), rows=[list(row) for row in zip(*kept.values(), strict=True)])


def render(answer: MakeVectorAnswer) -> str:
    """As text."""
    rows = [["any" if value is None and i == 0 else value for i, value in enumerate(row)] for row in answer.table.rows]
    return lines(answer, table(Table(columns=answer.table.columns, rows=rows)) if rows else "")


SPEC = ToolSpec(
    name="make_vector",
    title="Make a steering vector",
    description=(
        "Makes a named direction of the residual stream for steer and interventions, kept until deleted. "
        "mean_difference: mean state after each layer over `positive` minus `negative`; "
        "principal_component: of the differences of pairs; activation: of one prompt; (un)embedding_difference: "
        "between tokens; random: given norm and seed; file: numbers. Reports how well unseen "
        "prompts are told apart: match the sets in all else."
    ),
    params=MakeVectorParams,
    result=MakeVectorResult,
    answer=MakeVectorAnswer,
    digest=digest,
    render=render,
    read_only=False,
    destructive=True,
    served=True,
)
