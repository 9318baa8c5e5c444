"""Operations in words, as answers name what was in force."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.request.operations.kinds import (
    Add,
    Knockout,
    Operation,
    ProjectOut,
    Scale,
    SetAttention,
    Skip,
    StateOperation,
    site_of,
)
from nnterp_mcp.request.operations.operands import IndexSpec, TokenDifference
from nnterp_mcp.request.positions import PositionSpec


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
    if isinstance(operation, Knockout | SetAttention) and operation.query_positions != ("all",):
        parts.append(f"from {_places(operation.query_positions)}")
    if isinstance(operation, Knockout) and operation.key_positions != ("all",):
        parts.append(f"to {_places(operation.key_positions)}")
    return " ".join(parts)


def label_of(vector: str | TokenDifference | tuple[float, ...]) -> str:
    """How answers and errors name a vector."""
    if isinstance(vector, str):
        return f"the vector {vector!r}"
    if isinstance(vector, TokenDifference):
        return f"{vector.positive!r} − {vector.negative!r}" if vector.negative else repr(vector.positive)
    return "the vector given"


def _places(positions: Sequence[PositionSpec]) -> str:
    """Positions as they were asked for."""
    named = [str(at) if isinstance(at, int | str) else at.model_dump_json(exclude_defaults=True) for at in positions]
    return ", ".join(named)


def _listed(noun: str, asked: IndexSpec) -> str:
    if asked == "all":
        return f"all {noun}s"
    numbers = asked if isinstance(asked, tuple) else (asked,)
    return f"{noun}{'s' if len(numbers) > 1 or isinstance(asked, str) else ''} {', '.join(map(str, numbers))}"
