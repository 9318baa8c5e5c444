"""Lenses as a caller names them, and what is known of a fitted one without its numbers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from nnterp_mcp.formatting import plural
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LONGEST_STRING, decoded, require_at_most, shown
from nnterp_mcp.request.vectors import LONGEST_VECTOR, check_name

LensMethod = Literal["jacobian", "tuned"]

_MOST_LENSES = 4

UNFITTED: tuple[str, str] = ("logit", "inverse")
"""The lenses that need no fit: the model's own norm and head, and the same with negated logits."""


def _check_name(name: str) -> str:
    if check_name(name) in UNFITTED:
        raise ValueError(f"{shown(name)} is the name of a lens that needs no fit: choose another")
    return name


LensName = Annotated[str, Field(max_length=LONGEST_VECTOR), AfterValidator(_check_name)]
"""A lens is named as a vector is."""

LensChoice = Annotated[
    str,
    Field(
        min_length=1,
        max_length=LONGEST_STRING,
        description="logit; inverse: what a layer most demotes; or a fitted lens: its name, file, or Hub id and path.",
    ),
]


def _check_fitted(name: str) -> str:
    if name in UNFITTED:
        raise ValueError(f"lens takes a fitted lens, and {shown(name)} needs no fit")
    return name


FittedLens = Annotated[str, Field(min_length=1, max_length=LONGEST_STRING), AfterValidator(_check_fitted)]
"""A fitted lens by its name, its file, or its Hub id and path."""


def _as_choices(value: Any) -> tuple[str, ...]:
    chosen = decoded(value)
    names = [chosen] if isinstance(chosen, str) else chosen
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"lens must be the name or file of a fitted lens, or a list of these, not {shown(value)}")
    require_at_most(_MOST_LENSES, names, "lens", "lenses")
    if any(name in UNFITTED or len(name) > LONGEST_STRING for name in names):
        raise ValueError("lens takes fitted lenses alone: the logit lens is read next to them")
    return tuple(dict.fromkeys(names))


_CHOICES = {**schemas.TEXT, "maxLength": LONGEST_STRING * _MOST_LENSES}
"""A name; a list is taken too, and an agent pays for each form that is listed."""

LensChoices = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_choices),
    schemas.as_schema(_CHOICES, "Fitted lens or lenses, for logit_lens."),
]
"""Fitted lenses that are compared with the logit lens."""


class LensCard(BaseModel):
    """Metadata of a fitted lens.

    Attributes:
        name: Its name, or its file's.
        method: How it translates states.
        prompts: The number of prompts that it was fitted on; None where its file does not say.
        corpus: What these were, as its file says.
        revision: The commit of one that came from the Hub.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    method: LensMethod
    prompts: int | None = None
    corpus: str | None = None
    revision: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None

    @property
    def kind(self) -> str:
        """As columns name it."""
        return f"{'Jacobian' if self.method == 'jacobian' else 'tuned'} lens"

    def __str__(self) -> str:
        """As answers name it."""
        if self.prompts is None:
            return f"{self.kind} {self.name!r}"
        of = f" of {self.corpus}" if self.corpus else ""
        return f"{self.kind} {self.name!r} (fitted on {plural(self.prompts, 'prompt')}{of})"
