"""Lenses as a caller names them, and what is known of a fitted one without its numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from nnterp_mcp.formatting import plural
from nnterp_mcp.request.arguments import LONGEST_STRING, shown
from nnterp_mcp.request.vectors import LONGEST_VECTOR, check_name

LensMethod = Literal["jacobian", "tuned"]

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
        description=(
            "logit; inverse: the tokens that a layer most demotes; or a Jacobian or tuned lens: of fit_lens, or a file."
        ),
    ),
]


class LensCard(BaseModel):
    """Metadata of a fitted lens.

    Attributes:
        name: Its name, or its file's.
        method: How it translates states.
        prompts: The number of prompts that it was fitted on; None where its file does not say.
        corpus: What these were, as its file says.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    method: LensMethod
    prompts: int | None = None
    corpus: str | None = None

    def __str__(self) -> str:
        """As answers name it."""
        kind = {"jacobian": "Jacobian", "tuned": "tuned"}[self.method]
        if self.prompts is None:
            return f"{kind} lens {self.name!r}"
        of = f" of {self.corpus}" if self.corpus else ""
        return f"{kind} lens {self.name!r} (fitted on {plural(self.prompts, 'prompt')}{of})"
