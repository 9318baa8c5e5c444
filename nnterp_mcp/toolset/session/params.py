"""Arguments of `session`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from nnterp_mcp.contract import Params
from nnterp_mcp.request.prompt_sets import ContentsField
from nnterp_mcp.request.vectors import VectorName


def _require_text(given: Any) -> Any:
    if isinstance(given, Mapping | list):
        raise ValueError(
            'save_set is the name alone: give save_set="capitals" and the prompts in the argument prompts, '
            "as a list or as {group: list}"
        )
    return given


class SessionParams(Params):
    """A prompt set to save or to delete; nothing to list what there is."""

    save_set: Annotated[
        VectorName | None,
        BeforeValidator(_require_text),
        Field(description="Name to save prompts under."),
    ] = None
    prompts: ContentsField | None = None
    delete_set: Annotated[VectorName | None, Field(description="A saved prompt set to delete.")] = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.save_set is None) != (self.prompts is None):
            raise ValueError("save_set and prompts go together: a name, and the prompts to save under it")
        if self.save_set is not None and self.delete_set is not None:
            raise ValueError("a call saves a prompt set or deletes one")
        return self
