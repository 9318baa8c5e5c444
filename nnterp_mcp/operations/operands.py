"""Where operations act and what they act with: sites, indices, vectors, sources, patterns."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from nnterp_mcp.fields import Layers, LayerSpec, Positions, Prompt, Prompts, shown

Site = Literal[
    "token_embeddings",
    "layers_input",
    "queries",
    "keys",
    "values",
    "attention_probabilities",
    "heads_output",
    "attentions_raw_output",
    "attentions_output",
    "mlps_raw_output",
    "mlps_output",
    "layers_output",
]
"""Where an operation acts, in the order in which a layer runs.

`token_embeddings` (no layer) is what the embedding returns; `heads_output` is what each head hands to the output
projection; `attentions_output` and `mlps_output` are what is added to the residual stream, and the raw outputs what the
modules compute before a norm or a multiplier behind them, where there is one. Queries and keys are taken as they enter
their product, after norms and rotary embedding.
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


class Fields(BaseModel):
    """Base of what callers write: frozen, unknown names refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True)


class TokenDifference(Fields):
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


class Source(Fields):
    """Where a patch comes from: a clean pass with no intervention in force, or the states that an earlier run kept.

    Attributes:
        prompt: A prompt of the request by its index, or another one; each prompt itself when left out. With `run`, a
            prompt of that run by its index; that of the same index when left out.
        position: One position, whose state then goes to every target position, or as many as the patch has.
        layer: The layer; the patched one when left out.
        run: A run of `collect_activations`, whose states are taken as they were kept.
    """

    prompt: Annotated[int | Prompt | None, BeforeValidator(_as_source_prompt)] = None
    position: Positions | None = None
    layer: Annotated[int, Field(strict=True)] | None = None
    run: str | None = None


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


AttentionPattern = Annotated[Pattern | Matrix, BeforeValidator(_as_pattern)]
"""A pattern by its name, or a matrix (query × key)."""
