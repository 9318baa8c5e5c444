"""Operations as requests carry them: parsed one by one, refused in words, described to agents."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationError, WithJsonSchema

from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import MOST_OPERATIONS, decoded, require_at_most, shown, without_nulls
from nnterp_mcp.request.operations.kinds import FEATURE_OPERATIONS, OPERATIONS, BaseOperation, EditFeatures, Operation
from nnterp_mcp.request.operations.operands import Source


def _as_operations(value: Any) -> tuple[Operation, ...]:
    given = decoded(value)
    items = [given] if isinstance(given, dict | BaseOperation) else given
    if not isinstance(items, list | tuple):
        raise ValueError(
            f'interventions must be a list of operations such as {{"op": "skip", "layers": 3}}, not {shown(value)}'
        )
    require_at_most(MOST_OPERATIONS, items, "interventions", "operations")
    return tuple(parse_operation(item, index) for index, item in enumerate(items))


def parse_operation(value: Any, index: int = 0) -> Operation:
    """One operation, from the data that a caller sent or from an operation that was built before.

    Args:
        value: The data, an object with the field `op`.
        index: Its place in the list, for the error.

    Raises:
        ValueError: It is not one; with what came and what is allowed.
    """
    value = without_nulls(decoded(value))
    if isinstance(value, Operation):
        return value
    known = ", ".join(OPERATIONS)
    if not isinstance(value, dict) or not isinstance(value.get("op"), str):
        raise ValueError(f"intervention {index} must be an object whose op is one of {known}, not {shown(value)}")
    name = value["op"]
    kind = _kind(name, value)
    if kind is None:
        raise ValueError(f"intervention {index}: there is no op {shown(name)}: the ops are {known}")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"intervention {index}: {_explain(error, kind, name)}") from None


def _kind(name: str, value: dict[str, Any]) -> type[Operation] | None:
    """The class of an operation; those on features share names with those on states."""
    of_features = value.get("site") == "features" or name not in OPERATIONS
    if name in FEATURE_OPERATIONS and of_features:
        return EditFeatures
    return OPERATIONS.get(name)


def _explain(error: ValidationError, operation: type[Operation], op: str) -> str:
    return "; ".join(dict.fromkeys(_explain_one(detail, operation, op) for detail in error.errors()))


def _explain_one(detail: Any, operation: type[Operation], op: str) -> str:
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
    'Edits, such as [{"op": "zero", "site": "mlps_output", "layers": 3, "positions": "last"}]. The ops '
    'add (vector: a name, numbers or {"positive": " love", "negative": " hate"}; factor), scale (factor), zero, mean '
    "(over: prompts or 'all', position by position; over_positions: those together), patch (from: {prompt, position, "
    "layer, run}; along: a vector), project_out (vector; over: to their mean, not zero; 'all' skips the first token) "
    "and swap (vector, other) take site, "
    "positions, heads, neurons; skip; knockout (heads, query_positions, key_positions); set_attention (pattern). "
    "Sites: token_embeddings, layers_input, mlps_input, neurons, layers_/attentions_/attentions_raw_/mlps_/mlps_raw_/"
    "heads_output, queries, keys, values, attention_probabilities."
)


def _schema(description: str) -> WithJsonSchema:
    return schemas.as_schema(schemas.OPERATION_LIST, description)


Interventions = Annotated[
    tuple[Operation, ...],
    BeforeValidator(_as_operations),
    _schema("Edits; generate lists the ops."),
]
"""The interventions that are active during a call."""

DescribedInterventions = Annotated[tuple[Operation, ...], BeforeValidator(_as_operations), _schema(_LANGUAGE)]
"""The same, for the one tool whose definition teaches the language: an agent pays for every definition."""
