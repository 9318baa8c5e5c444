"""Result and answer of `load_model`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from nnterp_mcp.contract import Answer, Result


class CheckLine(BaseModel):
    """One check that the model went through when it was loaded."""

    model_config = ConfigDict(extra="forbid")

    name: str
    passed: bool
    detail: str


class LoadModelResult(Result):
    """The card of a loaded model; sizes in bytes."""

    handle: str
    architecture: str
    num_layers: int
    num_heads: int
    hidden_size: int
    vocab_size: int
    context: int | None
    parameters: int
    dtype: str
    device: str
    attention: str
    memory: int
    seconds: float
    source: str
    revision: str | None
    verified: bool
    checks: list[CheckLine]
    already_loaded: bool = False


class LoadModelAnswer(Answer):
    """The card as an agent sees it."""

    model: Annotated[str, Field(description="The handle for later calls.")]
    card: Annotated[
        dict[str, str | int | float | None],
        WithJsonSchema(
            {"type": "object", "description": "Architecture, sizes, dtype, device, bytes, seconds, source."}
        ),
    ]
    checks: Annotated[list[str], Field(description="Each check: passed or FAILED, and what was measured.")]
