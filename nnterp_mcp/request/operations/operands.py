"""Where operations act and what they act with: sites, indices, vectors, sources, patterns."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from nnterp_mcp.request.arguments import (
    LONGEST_NAME,
    LONGEST_STRING,
    MOST_CELLS,
    MOST_INDICES,
    MOST_NUMBERS,
    MOST_PROMPTS,
    Given,
    decoded,
    is_whole,
    require_at_most,
    shown,
    whole,
)
from nnterp_mcp.request.named_sets import prompts_of
from nnterp_mcp.request.positions import LayerSpec, Positions, parse_indices
from nnterp_mcp.request.prompts import Prompt, Prompts, as_prompt, require_messages

IndexSpec = LayerSpec


def _indices(name: str, most: int = MOST_INDICES) -> BeforeValidator:
    """Takes what `layers` takes, under another name."""
    return BeforeValidator(lambda value: parse_indices(value, name, most, "0:4"))


def _as_steps(value: Any) -> IndexSpec:
    parsed = parse_indices(value, "steps", MOST_INDICES, "0:4")
    numbers = parsed if isinstance(parsed, tuple) else (parsed,)
    if any("-" in str(number) for number in numbers):
        raise ValueError(f"steps count from 0, the pass over the prompt, and never from the end, so not {shown(value)}")
    return parsed


Heads = Annotated[IndexSpec, _indices("heads")]
Neurons = Annotated[IndexSpec, _indices("neurons", MOST_NUMBERS)]
FeatureIndices = Annotated[IndexSpec, _indices("features", MOST_NUMBERS)]
PromptIndices = Annotated[IndexSpec, _indices("prompts", MOST_PROMPTS)]
Steps = Annotated[IndexSpec, BeforeValidator(_as_steps)]


class TokenDifference(Given):
    """A direction between tokens: rows of the embedding (or of the unembedding), averaged over a text's tokens.

    Attributes:
        positive: The text towards which the direction points; mind its leading space.
        negative: The text away from which it points; None for the rows of `positive` alone.
        of: Whose rows.
    """

    positive: Annotated[str, Field(min_length=1, max_length=LONGEST_STRING)]
    negative: Annotated[str, Field(min_length=1, max_length=LONGEST_STRING)] | None = None
    of: Literal["embeddings", "unembeddings"] = "embeddings"


def _as_vector(value: Any) -> Any:
    given = decoded(value)
    if isinstance(given, TokenDifference):
        return given
    if isinstance(given, str) and given:
        require_at_most(LONGEST_NAME, given, "the name of a vector", "characters")
        return given
    if isinstance(given, list | tuple):
        require_at_most(MOST_NUMBERS, given, "vector", "numbers")
    try:
        if isinstance(given, dict):
            return TokenDifference.model_validate(given)
        if isinstance(given, list | tuple) and given:
            return _NUMBERS.validate_python(given)
    except ValidationError:
        pass
    raise ValueError(
        'vector must be the name of a vector, a token difference such as {"positive": " love", "negative": " hate"} '
        f"or a list of numbers, not {shown(value)}"
    )


_NUMBERS: TypeAdapter[tuple[float, ...]] = TypeAdapter(
    tuple[Annotated[float, Field(allow_inf_nan=False, strict=True)], ...]
)
Vector = Annotated[str | TokenDifference | tuple[float, ...], BeforeValidator(_as_vector)]
"""A vector's name, a direction between tokens, or its numbers."""


def _as_source_prompt(value: Any) -> Any:
    given = whole(prompts_of(value))
    if given is None or is_whole(given):
        return given
    require_messages(decoded(given))
    try:
        return as_prompt(given)
    except ValueError:
        raise ValueError(
            f"from.prompt must be the index of a prompt of the request, or one prompt, not {shown(value)}"
        ) from None


def _as_averaged(value: Any) -> Any:
    given = whole(decoded(prompts_of(value)))
    items = given if isinstance(given, list | tuple) else [given]
    if given == "all" or (items and all(is_whole(whole(item)) for item in items)):
        require_at_most(MOST_PROMPTS, items, "over", "prompts")
        return "all" if given == "all" else tuple(dict.fromkeys(whole(item) for item in items))
    try:
        return _PROMPTS.validate_python(given)
    except ValidationError as error:
        raise ValueError(
            "over must name the prompts that are averaged: texts or chats, indices of prompts of the request, or 'all' "
            f"of them ({error.errors()[0]['msg'].removeprefix('Value error, ')})"
        ) from None


_PROMPTS: TypeAdapter[tuple[Prompt, ...]] = TypeAdapter(Prompts)
AveragedPrompts = Annotated[Literal["all"] | tuple[int | Prompt, ...], BeforeValidator(_as_averaged)]
"""Prompts by their texts or by their indices in the request, or all prompts of the request."""


class Source(Given):
    """Where a patch comes from: a clean pass, without any intervention, or the states that an earlier run kept.

    Attributes:
        prompt: A prompt of the request by its index, or another one; each prompt itself when left out. With `run`, a
            prompt of that run by its index; that of the same index when left out.
        position: One position, whose state then goes to every target position, or as many as the patch has.
        layer: The layer; the patched one when left out.
        run: A run of `collect_activations`, whose states are taken as they were kept.
    """

    prompt: Annotated[int | Prompt | None, BeforeValidator(_as_source_prompt)] = None
    position: Positions | None = None
    layer: Annotated[int, BeforeValidator(whole), Field(strict=True)] | None = None
    run: Annotated[str, Field(max_length=LONGEST_NAME)] | None = None


Matrix = tuple[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], ...]
_MATRIX: TypeAdapter[Matrix] = TypeAdapter(Matrix)
Pattern = Literal["uniform", "first", "previous", "self"]


def _as_pattern(value: Any) -> Any:
    given = decoded(value)
    if isinstance(given, str) and given in get_args(Pattern):
        return given
    if isinstance(given, list | tuple) and given:
        rows = [row for row in given if isinstance(row, list | tuple)]
        require_at_most(MOST_CELLS, range(sum(map(len, rows))), "pattern", "numbers")
        try:
            return _MATRIX.validate_python(given)
        except ValidationError:
            pass
    raise ValueError(
        "pattern must be 'uniform', 'first', 'previous', 'self' or a matrix of numbers with one row per query "
        f"position, not {shown(value)}"
    )


AttentionPattern = Annotated[Pattern | Matrix, BeforeValidator(_as_pattern)]
"""A pattern by its name, or a matrix (query × key)."""
