"""Lenses as a caller names them, and what is known of a fitted one without its numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from nnterp_mcp.formatting import plural
from nnterp_mcp.request.arguments import LONGEST_STRING

LensMethod = Literal["jacobian", "tuned"]

LensChoice = Annotated[
    str,
    Field(
        min_length=1,
        max_length=LONGEST_STRING,
        description=(
            "logit; inverse: the tokens that a layer most demotes; or the file of a fitted Jacobian or tuned lens."
        ),
    ),
]


class LensCard(BaseModel):
    """Metadata of a fitted lens.

    Attributes:
        name: Its file's name.
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
