"""Corrupted prompts for `patch_activations`: other prompts, or a way of making them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LONGEST_STRING, Given, shown
from nnterp_mcp.request.named_sets import prompts_of
from nnterp_mcp.request.positions import Positions
from nnterp_mcp.request.prompts import Prompts, read_text


class _Kind(Given):
    """One way of making them."""


class Replaced(_Kind):
    """The clean prompts with a piece of their text replaced."""

    replace: Annotated[str, Field(min_length=1, max_length=LONGEST_STRING)]
    by: Annotated[str, Field(alias="with", max_length=LONGEST_STRING)]


class Noise(_Kind):
    """The clean prompts with noise on the embeddings of some tokens, as in causal tracing.

    Attributes:
        noise: Its standard deviation, in those of the embeddings of a prompt's own tokens.
        positions: The tokens.
        samples: Draws for each prompt.
    """

    noise: Annotated[float, Field(gt=0, le=100)]
    positions: Positions
    samples: Annotated[int, Field(ge=1, le=64)] = 10


class Ablated(_Kind):
    """No other run: zeros, position-wise means over prompts, or states of another clean prompt drawn at random.

    Attributes:
        ablate: The states.
        over: The prompts of the means; the clean ones by default.
    """

    ablate: Literal["zero", "mean", "resample"]
    over: Prompts | None = None

    @model_validator(mode="after")
    def _fits(self) -> Ablated:
        if self.over is not None and self.ablate != "mean":
            raise ValueError('over goes with {"ablate": "mean"}')
        return self


_KINDS: dict[str, type[_Kind]] = {"replace": Replaced, "noise": Noise, "ablate": Ablated}
_PROMPTS: TypeAdapter[Any] = TypeAdapter(Prompts)


def _as_corruption(value: Any) -> Any:
    value = read_text(
        prompts_of(value), lambda found: isinstance(found, dict) and any(name in found for name in _KINDS)
    )
    if isinstance(value, _Kind):
        return value
    if not isinstance(value, dict):
        try:
            return _PROMPTS.validate_python(value)
        except ValidationError as error:
            raise ValueError(_message(error).replace("prompts", "corrupted", 1)) from None
    kind = next((kind for name, kind in _KINDS.items() if name in value), None)
    try:
        if kind is not None:
            return kind.model_validate(value)
        fault = f"not {shown(value)}"
    except ValidationError as error:
        fault = f"not {shown(value)}: {_message(error)}"
    raise ValueError(
        'corrupted must be prompts, {"replace": …, "with": …}, {"noise": …, "positions": …, "samples": …} or '
        f'{{"ablate": "zero", "mean" or "resample"}}, {fault}'
    )


def _message(error: ValidationError) -> str:
    detail = error.errors()[0]
    name = ".".join(str(part) for part in detail["loc"])
    said = detail["msg"].removeprefix("Value error, ")
    return f"{name}: {said[:1].lower()}{said[1:]}" if name else said


CorruptedField = Annotated[
    Any,
    BeforeValidator(_as_corruption),
    schemas.as_schema(
        schemas.PROMPTS,
        'Prompts; {"replace": "France", "with": "Spain"}; {"noise": 3, "positions": 3}; '
        '{"ablate": "zero"} (mean, resample).',
    ),
]
"""Prompts, or a `Replaced`, `Noise` or `Ablated`."""
