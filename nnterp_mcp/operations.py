"""The language of interventions: what an operation on a running model says, before any model is known.

Every tool that runs a forward pass takes a list of these, and so does the library (`interventions/plan.py` resolves
them against a model). They act in the order in which the model runs; at one and the same place in the order listed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from nnterp_mcp.fields import Layers, LayerSpec, Positions, Prompt, Prompts, shown

Site = Literal[
    "token_embeddings",
    "layers_input",
    "queries",
    "keys",
    "values",
    "attention_probabilities",
    "heads_output",
    "attentions_output",
    "mlps_output",
    "layers_output",
]
"""Where an operation acts, in the order in which a layer runs.

`token_embeddings` (no layer) is what the embedding returns; `heads_output` is what each head hands to the output
projection; `attentions_output` and `mlps_output` are what is added to the residual stream. Queries and keys are
taken as they enter their product, after norms and rotary embedding.
"""

SITES: tuple[Site, ...] = get_args(Site)
HEAD_SITES: frozenset[Site] = frozenset({"queries", "keys", "values", "attention_probabilities", "heads_output"})
"""Where there are heads to choose."""

IndexSpec = Literal["all"] | str | int | tuple[int, ...]


def _indices(name: str) -> BeforeValidator:
    """Takes what `layers` takes, under another name."""

    def parse(value: Any) -> IndexSpec:
        try:
            return _LAYERS.validate_python(value)
        except ValidationError:
            raise ValueError(
                f"{name} must be an integer, a list of integers, a range such as '0:4' or 'all', not {shown(value)}"
            ) from None

    return BeforeValidator(parse)


def _as_steps(value: Any) -> IndexSpec:
    parsed = _STEPS.validate_python(value)
    numbers = parsed if isinstance(parsed, tuple) else (parsed,)
    if any(str(number).find("-") >= 0 for number in numbers):
        raise ValueError(f"steps count from 0, the pass over the prompt, and never from the end, so not {shown(value)}")
    return parsed


_LAYERS: TypeAdapter[LayerSpec] = TypeAdapter(Layers)
_STEPS: TypeAdapter[IndexSpec] = TypeAdapter(Annotated[IndexSpec, _indices("steps")])

Heads = Annotated[IndexSpec, _indices("heads")]
Neurons = Annotated[IndexSpec, _indices("neurons")]
PromptIndices = Annotated[IndexSpec, _indices("prompts")]
Steps = Annotated[IndexSpec, BeforeValidator(_as_steps)]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True)


class TokenDifference(_Fields):
    """A direction between tokens: rows of the embedding (or of the unembedding), averaged over a text's tokens.

    Attributes:
        positive: The text towards which the direction points; mind its leading space.
        negative: The text away from which it points; None for the rows of `positive` alone.
        of: Whose rows.
    """

    positive: Annotated[str, Field(min_length=1)]
    negative: Annotated[str, Field(min_length=1)] | None = None
    of: Literal["embeddings", "unembeddings"] = "embeddings"


def _as_vector(value: Any) -> Any:
    wrong = (
        'vector must be the name of a vector, a token difference such as {"positive": " love", "negative": " hate"} '
        f"or a list of numbers, not {shown(value)}"
    )
    if (isinstance(value, str) and value) or isinstance(value, TokenDifference):
        return value
    try:
        if isinstance(value, dict):
            return TokenDifference.model_validate(value)
        if isinstance(value, list | tuple) and value:
            return _NUMBERS.validate_python(value)
    except ValidationError:
        pass
    raise ValueError(wrong)


_NUMBERS: TypeAdapter[tuple[float, ...]] = TypeAdapter(
    tuple[Annotated[float, Field(allow_inf_nan=False, strict=True)], ...]
)
Vector = Annotated[str | TokenDifference | tuple[float, ...], BeforeValidator(_as_vector)]
"""A vector's name, a direction between tokens, or its numbers."""


class _Operation(_Fields):
    """What all operations say.

    Attributes:
        layers: The layers that it acts on.
        prompts: The prompts of the request that it acts on.
        steps: The steps of a generation at which it acts: 0 is the pass over the prompt, 1 the one over the first
            new token, and so on.
    """

    layers: Layers | None = None
    prompts: PromptIndices = "all"
    steps: Steps = "all"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _check(self)  # pyright: ignore[reportArgumentType]
        return self


class _StateOperation(_Operation):
    """What operations on states say.

    Attributes:
        site: Where in the layer; `heads_output` when heads are named.
        positions: The positions of the prompt. `all`, `last` and ranges without an end reach on to new tokens.
        heads: The heads, at sites that have them.
        neurons: The components of the states.
    """

    site: Site | None = None
    positions: Positions = ("all",)
    heads: Heads | None = None
    neurons: Neurons | None = None


class Add(_StateOperation):
    """Adds `factor` times a vector to the states: steering."""

    op: Literal["add"] = "add"
    vector: Vector
    factor: float = 1.0


class Scale(_StateOperation):
    """Multiplies the states by `factor`."""

    op: Literal["scale"] = "scale"
    factor: float


class Zero(_StateOperation):
    """Sets the states to zero: zero ablation."""

    op: Literal["zero"] = "zero"


class Mean(_StateOperation):
    """Replaces the states by their mean over prompts and positions: mean ablation.

    Attributes:
        over: The prompts whose clean run is averaged; the request's own when left out.
        over_positions: Their positions.
    """

    op: Literal["mean"] = "mean"
    over: Prompts | None = None
    over_positions: Positions = ("all",)


_PROMPTS: TypeAdapter[tuple[Prompt, ...]] = TypeAdapter(Prompts)


def _as_source_prompt(value: Any) -> Any:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    try:
        (prompt,) = _PROMPTS.validate_python(value)
    except ValueError:
        raise ValueError(
            f"from.prompt must be the index of a prompt of the request, or one prompt, not {shown(value)}"
        ) from None
    return prompt


class Source(_Fields):
    """Where a patch comes from: a clean run, with no intervention in force.

    Attributes:
        prompt: A prompt of the request by its index, or another one; each prompt itself when left out.
        position: One position, whose state then goes to every target position, or as many as the patch has.
        layer: The layer; the patched one when left out.
        run: Reserved for the activations of an earlier run.
    """

    prompt: Annotated[int | Prompt | None, BeforeValidator(_as_source_prompt)] = None
    position: Positions | None = None
    layer: Annotated[int, Field(strict=True)] | None = None
    run: str | None = None


class Patch(_StateOperation):
    """Replaces the states by those of a clean run, possibly of another prompt, position or layer.

    It reaches positions of the prompt only: new tokens of a generation have no counterpart.
    """

    op: Literal["patch"] = "patch"
    source: Source = Field(validation_alias=AliasChoices("from", "source"), serialization_alias="from")


class ProjectOut(_StateOperation):
    """Removes the component along a vector: directional ablation."""

    op: Literal["project_out"] = "project_out"
    vector: Vector


class Skip(_Operation):
    """Lets the named layers pass on what came in, each of them, the first and the last included."""

    op: Literal["skip"] = "skip"


class Knockout(_Operation):
    """Cuts what queries read from keys, in the attention probabilities.

    Attributes:
        heads: The heads.
        query_positions: The positions that read. `all`, `last` and ranges without an end reach on to new tokens.
        key_positions: The positions that are not read any more. `all` and ranges without an end reach on to new tokens.
        renormalise: Whether the other keys share what was cut, as if the scores had been masked.
    """

    op: Literal["knockout"] = "knockout"
    heads: Heads = "all"
    query_positions: Positions = ("all",)
    key_positions: Positions = ("all",)
    renormalise: bool = True


Matrix = tuple[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], ...]
_MATRIX: TypeAdapter[Matrix] = TypeAdapter(Matrix)
Pattern = Literal["uniform", "first", "previous", "self"]


def _as_pattern(value: Any) -> Any:
    if isinstance(value, str) and value in get_args(Pattern):
        return value
    if isinstance(value, list | tuple) and value:
        try:
            return _MATRIX.validate_python(value)
        except ValidationError:
            pass
    raise ValueError(
        "pattern must be 'uniform', 'first', 'previous', 'self' or a matrix of numbers with one row per query "
        f"position, not {shown(value)}"
    )


class SetAttention(_Operation):
    """Replaces attention probabilities by a fixed pattern.

    Attributes:
        heads: The heads.
        query_positions: The positions that read. `all`, `last` and ranges without an end reach on to new tokens.
        pattern: What each of them reads: all tokens up to itself evenly, the first, the one before it (the first
            token reads itself), itself; or a matrix (query × key) over the prompt's tokens.
    """

    op: Literal["set_attention"] = "set_attention"
    heads: Heads = "all"
    query_positions: Positions = ("all",)
    pattern: Annotated[Pattern | Matrix, BeforeValidator(_as_pattern)]


StateOperation = Add | Scale | Zero | Mean | Patch | ProjectOut
"""An operation on the states of a site."""

Operation = StateOperation | Skip | Knockout | SetAttention
"""One intervention."""

OPERATIONS: dict[str, type[Operation]] = {
    cls.model_fields["op"].default: cls
    for cls in (Add, Scale, Zero, Mean, Patch, ProjectOut, Skip, Knockout, SetAttention)
}
"""Every operation under its name."""

_DEFAULT_SITES: dict[str, Site] = {"add": "layers_output", "patch": "layers_output", "project_out": "layers_output"}


def site_of(operation: StateOperation) -> Site:
    """Where a state operation acts, its default applied.

    Raises:
        ValueError: There is no sensible default.
    """
    if operation.site is not None:
        return operation.site
    if operation.heads is not None:
        return "heads_output"
    if operation.op not in _DEFAULT_SITES:
        raise ValueError(f"{operation.op} needs a site: one of {', '.join(SITES)}")
    return _DEFAULT_SITES[operation.op]


def describe(operation: Operation) -> str:
    """An operation in a few words, as answers name what was in force."""
    parts = [operation.op]
    if isinstance(operation, Scale):
        parts.append(f"by {operation.factor:g}")
    if isinstance(operation, Add):
        parts.append(f"{operation.factor:g} ×")
    if isinstance(operation, Add | ProjectOut):
        parts.append(label_of(operation.vector))
    if isinstance(operation, SetAttention):
        parts.append(operation.pattern if isinstance(operation.pattern, str) else "to a matrix")
    if isinstance(operation, StateOperation):
        parts.append(f"at {site_of(operation)}")
    if operation.layers is not None:
        parts.append(f"of {_listed('layer', operation.layers)}")
    heads = None if isinstance(operation, Skip) else operation.heads
    if heads is not None and heads != "all":
        parts.append(_listed("head", heads))
    return " ".join(parts)


def label_of(vector: str | TokenDifference | tuple[float, ...]) -> str:
    """How answers and errors name a vector."""
    if isinstance(vector, str):
        return f"the vector {vector!r}"
    if isinstance(vector, TokenDifference):
        return f"{vector.positive!r} − {vector.negative!r}" if vector.negative else repr(vector.positive)
    return "the vector given"


def _listed(noun: str, asked: IndexSpec) -> str:
    if asked == "all":
        return f"all {noun}s"
    numbers = asked if isinstance(asked, tuple) else (asked,)
    return f"{noun}{'s' if len(numbers) > 1 or isinstance(asked, str) else ''} {', '.join(map(str, numbers))}"


def _check(operation: Operation) -> None:
    """What no single field can tell."""
    site = site_of(operation) if isinstance(operation, StateOperation) else None
    if site == "token_embeddings" and operation.layers is not None:
        raise ValueError(f"{operation.op} takes no layers at token_embeddings, which come before the first layer")
    if site != "token_embeddings" and operation.layers is None:
        raise ValueError(
            f"{operation.op} needs layers: an integer, a list of integers, a range such as '4:20' or 'all'"
        )
    if isinstance(operation, StateOperation):
        _check_site(operation, site_of(operation))


def _check_site(operation: StateOperation, site: Site) -> None:
    if operation.heads is not None and site not in HEAD_SITES:
        sites = ", ".join(other for other in SITES if other in HEAD_SITES)
        raise ValueError(f"{operation.op} can choose heads at {sites}, not at {site}")
    if site == "attention_probabilities" and not isinstance(operation, Scale | Zero | Patch):
        raise ValueError(
            f"{operation.op} cannot act at attention_probabilities: scale, zero, patch, knockout and set_attention can"
        )
    if site == "attention_probabilities" and operation.neurons is not None:
        raise ValueError(f"{operation.op} cannot choose neurons at attention_probabilities: knockout chooses keys")


def _as_operations(value: Any) -> tuple[Operation, ...]:
    items = [value] if isinstance(value, dict | _Operation) else value
    if not isinstance(items, list | tuple):
        raise ValueError(
            f'interventions must be a list of operations such as {{"op": "skip", "layers": 3}}, not {shown(value)}'
        )
    return tuple(parse_operation(item, index) for index, item in enumerate(items))


def parse_operation(value: Any, index: int = 0) -> Operation:
    """One operation, from the data that a caller sent or from an operation that was built before.

    Args:
        value: The data, an object with the field `op`.
        index: Its place in the list, for the error.

    Raises:
        ValueError: It is not one; with what came and what is allowed.
    """
    if isinstance(value, Operation):
        return value
    known = ", ".join(OPERATIONS)
    if not isinstance(value, dict) or not isinstance(value.get("op"), str):
        raise ValueError(f"intervention {index} must be an object whose op is one of {known}, not {shown(value)}")
    name = value["op"]
    if name not in OPERATIONS:
        raise ValueError(f"intervention {index}: there is no op {shown(name)}: the ops are {known}")
    try:
        return OPERATIONS[name].model_validate(value)
    except ValidationError as error:
        raise ValueError(f"intervention {index}: {_explain(error, OPERATIONS[name])}") from None


def _explain(error: ValidationError, operation: type[Operation]) -> str:
    return "; ".join(dict.fromkeys(_explain_one(detail, operation) for detail in error.errors()))


def _explain_one(detail: Any, operation: type[Operation]) -> str:
    op = operation.model_fields["op"].default
    path = [str(part) for part in detail["loc"]]
    name = ".".join(path)
    if detail["type"] == "extra_forbidden":
        fields = _names(Source if path[0] in ("from", "source") else operation)
        return f"{op} has no field {shown(name)}: its fields are {', '.join(fields)}"
    if detail["type"] == "missing":
        return f"{op} needs the field {name!r}"
    if detail["type"] == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "model_type":
        return f"the field {name!r} of {op} must be an object, not {shown(detail['input'])}"
    message = detail["msg"][:1].lower() + detail["msg"][1:]
    return f"the field {name!r} of {op}: {message}, not {shown(detail['input'])}"


def _names(model: type[BaseModel]) -> list[str]:
    return [field.serialization_alias or name for name, field in model.model_fields.items() if name != "op"]


_LANGUAGE = (
    "Edits, each {op, layers, …}. op: add (vector: name, numbers or "
    '{"positive": " love", "negative": " hate"}; factor), scale (factor), zero, mean, patch (from: {prompt, '
    "position, layer}), project_out (vector), all with site, positions, heads; skip; knockout (heads, "
    "query_positions, key_positions); set_attention (pattern). site: token_embeddings, layers_input, "
    "layers_/attentions_/mlps_/heads_output, queries, keys, values, attention_probabilities"
)


def _schema(description: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "array", "items": {"type": "object"}, "description": description})


Interventions = Annotated[
    tuple[Operation, ...],
    BeforeValidator(_as_operations),
    _schema('Edits in force, [{"op": "zero", "site": "mlps_output", "layers": [3]}]; generate lists them all.'),
]
"""The operations in force during a call."""

DescribedInterventions = Annotated[tuple[Operation, ...], BeforeValidator(_as_operations), _schema(_LANGUAGE)]
"""The same, for the one tool whose definition teaches the language: an agent pays for every definition."""
