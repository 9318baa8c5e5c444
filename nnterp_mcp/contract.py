"""The base of all tools: spec, parameters, result and the answer that an agent sees.

A tool is one `ToolSpec` value. Its parameters are validated by the server, its result comes from a worker whole,
and `digest` cuts it down to an `Answer` that an agent can afford. The text and the structured content of a reply
are two forms of that one answer, so that they cannot disagree.
"""

from __future__ import annotations

import html
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Generic, Literal, TypeVar, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema

from nnterp_mcp.display.figure import Arrays, Figure
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.formatting import dominating, elided, number, on_one_line, quoted
from nnterp_mcp.request.arguments import Given, shown
from nnterp_mcp.request.fields import ModelHandle
from nnterp_mcp.request.named_sets import with_targets
from nnterp_mcp.table import Table, TableField


class Params(Given):
    """Base of every tool's parameters, which are flat."""


class ModelParams(Params):
    """Base of the parameters of every tool that works on a loaded model."""

    model: ModelHandle = None

    @model_validator(mode="before")
    @classmethod
    def _take_targets_of_sets(cls, given: Any) -> Any:
        """Takes the targets of the prompt set that a call names, where it gives none itself."""
        field = cls.model_fields.get("targets")
        return given if field is None else with_targets(given, get_origin(field.annotation) is tuple)


class ResultPart(BaseModel):
    """Base of the parts of a result, whose fields are all known; NaN and infinities are strings in JSON."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Measured(ResultPart):
    """A mean over prompts, with its 95 % interval where there are several."""

    mean: float
    low: float | None = None
    high: float | None = None


class DominantToken(ResultPart):
    """The token whose state dominates a mean over tokens.

    Attributes:
        token: The token.
        position: Its position.
        prompt: The prompt's index in its group.
        group: The group of prompts; empty where there is one.
        layer: The layer at which its norm exceeds the others' most; None for the embeddings.
        ratio: Its norm over the median norm of the averaged states there.
    """

    token: str
    position: int
    prompt: int
    group: str = ""
    layer: int | None
    ratio: float

    @property
    def warning(self) -> str:
        """The sentence that names it."""
        of = f" of {quoted(elided(self.group))}" if self.group else ""
        place = f"position {self.position} of prompt {self.prompt}{of}"
        return dominating(self.token, place, self.layer, self.ratio)


class Result(ResultPart):
    """Base of the results of tools: every number, reduced on the device, before anything is left out.

    Its `repr` counts what lists hold; a notebook shows a laboratory's result as its answer.

    Attributes:
        remarks: Notes on how the input was read.
    """

    remarks: Annotated[list[str], Field(exclude_if=operator.not_)] = []
    _summarize: Callable[[Any], Answer] | None = PrivateAttr(None)

    def shown_by(self, summarize: Callable[[Any], Answer]) -> None:
        """Sets how a notebook summarizes it."""
        self._summarize = summarize

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={_counted(value)}" for name, value in self)
        return f"{type(self).__name__}({fields})"

    def _repr_html_(self) -> str | None:
        return None if self._summarize is None else self._summarize(self).html()


def _counted(value: Any) -> str:
    """A field's value in a few characters: collections by what they hold, texts cut."""
    if isinstance(value, list | tuple | dict | BaseModel):
        size = len(type(value).model_fields) if isinstance(value, BaseModel) else len(value)  # pyright: ignore
        return f"<{type(value).__name__} of {size}>"  # pyright: ignore[reportUnknownArgumentType]
    return shown(value)


class Answer(ResultPart):
    """Base of what an agent sees, the same in both channels: what was found, in words; warnings, and what was left
    out; the run that holds the rest. A picture comes with both, as PNG."""

    finding: str
    notes: list[str] = []
    run_id: str | None = None
    picture: Annotated[SkipJsonSchema[bytes | None], Field(exclude=True, repr=False)] = None

    @property
    def exact(self) -> bool:
        """True if its numbers are given with all their digits."""
        return False

    @property
    def tables(self) -> dict[str, Table]:
        """Its tables by the names of their fields, in order."""
        return {name: value for name, value in self if isinstance(value, Table)}

    def body(self) -> list[str]:
        """The text between the finding and the notes: the tables that have rows."""
        return [table.text() for table in self.tables.values() if table.rows]

    def text(self) -> str:
        """The answer as text."""
        finding, *notes = map(on_one_line, (self.finding, *self.notes))
        return "\n".join(part for part in (finding, *self.body(), *notes) if part)

    def html(self) -> str:
        """The answer as HTML."""
        tables = {table.text(): table.html() for table in self.tables.values()}
        body = (tables.get(part.removeprefix("profile:\n"), f"<pre>{html.escape(part)}</pre>") for part in self.body())
        finding, *notes = (f"<p>{html.escape(line)}</p>" for line in (self.finding, *self.notes))
        return "\n".join([finding, *body, *notes])

    def structured(self) -> dict[str, Any]:
        """The answer as structured content, without the fields that are null."""
        kinds: Any = {name: {"kinds"} for name in self.tables}
        data = self.model_dump(mode="json", exclude=kinds)
        return {name: value for name, value in data.items() if value is not None}


class ModelAnswer(Answer):
    """Base of answers that show some of many things that a model did.

    Attributes:
        model: The model's handle.
        total: Their number in all.
        truncated: True if some are left out.
        by_layer: One number for every layer, by what it measures, where the tables show only some of the layers.
    """

    model: str
    total: int
    truncated: bool
    by_layer: Annotated[dict[str, list[float]], Field(exclude_if=operator.not_)] = {}

    def body(self) -> list[str]:
        """The tables, then a line for each number that every layer has."""
        lines = [f"{name}: {' '.join(map(number, values))}" for name, values in self.by_layer.items()]
        return [*super().body(), *lines]


class TableAnswer(ModelAnswer):
    """Base of answers that show one table of them."""

    table: TableField


class ProfiledAnswer(TableAnswer):
    """Base of answers that show the strongest of them, and in a second table how they are spread over the layers."""

    profile: TableField | None = None

    def body(self) -> list[str]:
        """The tables, the second under its name."""
        lines = super().body()
        if self.profile and self.profile.rows:
            at = 1 if self.table.rows else 0
            lines[at] = f"profile:\n{lines[at]}"
        return lines


class Late(Answer):
    """The answer about a call that has not ended: `read_run` has the rest later."""

    state: Literal["queued", "running", "loading"]
    progress: str | None = None


ToolGroup = Literal["basics", "reading", "causal", "training"]
"""The purposes of tools: models and runs; reading what a model computes; changing it; fitting something to it."""

_P = TypeVar("_P", bound=Params)
_R = TypeVar("_R", bound=Result)
_A = TypeVar("_A", bound=Answer)


@dataclass(frozen=True)
class ToolSpec(Generic[_P, _R, _A]):
    """One MCP tool as a value.

    Attributes:
        name: The tool's name, also its folder's.
        title: A short title for people.
        description: When to use it and what it measures, at most 2 KB: some clients cut there.
        examples: Arguments of calls that succeed on every loaded model, in any order; the first gives little beyond
            what is required. The reference shows them, and the tests that run over all tools make them, with a model,
            run or dictionary that is there in place of `model`, `run_id`, `source` and `dictionary`.
        params: Its parameters.
        digest: Cuts a result down to an answer; its annotations say which classes these are.
        figure: Turns a result, and the arrays of its run, into a figure; None for a tool that has no picture.
        place: The process in which `toolset/<name>/run.py` runs: the model's worker, or the server.
        read_only: The call changes nothing.
        destructive: The call removes something.
        idempotent: Calling again with the same arguments changes nothing more.
        open_world: The call reaches beyond this machine.
        recorded: A call in a worker is an experiment, and kept as a run.
        group: The group under which `--tools` names it; tools of the group basics are always served.
    """

    name: str
    title: str
    description: str
    examples: Sequence[Mapping[str, Any]] = field(hash=False)
    params: type[_P]
    digest: Callable[[_R], _A]
    figure: Callable[[_R, Arrays], Figure] | None = None
    place: Literal["server", "worker"] = "worker"
    read_only: bool = True
    destructive: bool = False
    idempotent: bool = True
    open_world: bool = False
    recorded: bool = True
    group: ToolGroup = "reading"

    @cached_property
    def result(self) -> type[_R]:
        """The class of what the worker (or the server) computes."""
        return next(kind for name, kind in get_type_hints(self.digest).items() if name != "return")

    @cached_property
    def answer(self) -> type[_A]:
        """The class of what an agent sees."""
        return get_type_hints(self.digest)["return"]

    def summarize(self, result: _R) -> _A:
        """The answer to a result, with the remarks on its input among the notes."""
        answer = self.digest(result)
        answer.notes += result.remarks
        return answer

    def input_schema(self) -> dict[str, Any]:
        """The JSON schema of the parameters."""
        schema = _compact(self.params.model_json_schema())
        schema.pop("description", None)
        return schema

    def advertised_schema(self) -> dict[str, Any]:
        """The JSON schema of the parameters as agents are given it: without the limits that only guard the server."""
        return _unguarded(self.input_schema())

    def output_schema(self) -> dict[str, Any]:
        """The JSON schema of the structured content: the fields that are this tool's own, with their types.

        Names say what fields hold, and the columns of a table what they do. A field that is null is left out of an
        answer; a call that has not ended answers with a finding alone.
        """
        fields = self.answer.model_json_schema(mode="serialization")["properties"]
        own = {name: _outline(field) for name, field in fields.items() if name not in _COMMON}
        return {"type": "object", "properties": own}

    def parse(self, arguments: Mapping[str, Any]) -> _P:
        """Validates the arguments of a call.

        Raises:
            InvalidRequest: One line per argument, with the value that came and the values allowed.
        """
        try:
            return self.params.model_validate(arguments)
        except ValidationError as error:
            raise InvalidRequest(_explain(self, error)) from None


_MOST_ERRORS = 5
"""Wrong arguments that an error names; each is told with what would be right."""


def _explain(spec: ToolSpec[Any, Any, Any], error: ValidationError) -> str:
    lines: list[str] = []
    for detail in error.errors()[:_MOST_ERRORS]:
        name = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            known = ", ".join(spec.params.model_fields)
            known = f"its arguments are {known}" if known else "it takes none"
            lines.append(f"{spec.name} has no argument {shown(name)}: {known}.")
        elif detail["type"] == "missing":
            lines.append(f"{spec.name} needs the argument {name!r}.")
        elif detail["type"] == "value_error":
            lines.append(f"{detail['msg'].removeprefix('Value error, ').removesuffix('.')}.")
        else:
            message = detail["msg"][:1].lower() + detail["msg"][1:]
            lines.append(f"{name}: {message}, not {shown(detail['input'])}.")
    if error.error_count() > _MOST_ERRORS:
        lines.append(f"{error.error_count() - _MOST_ERRORS} more arguments are wrong.")
    return "\n".join(dict.fromkeys(lines))


_COMMON = {"finding", "notes", "run_id", "model", "total", "truncated", "by_layer", "table", "profile"}
"""Fields that answers of most tools have, and whose names say what they are."""


def _outline(field: Mapping[str, Any]) -> dict[str, Any]:
    """The type of a field of an answer where it is not null, and that of its items."""
    (kind,) = [part for part in field.get("anyOf", [field]) if part != {"type": "null"}]
    items = {"items": {"type": kind["items"]["type"]}} if kind.get("type") == "array" else {}
    return {"type": kind.get("type", "object"), **items}


_UNSAID = {"title", "minimum", "exclusiveMinimum", "minLength"}
"""Keywords that an input schema does without: what is refused for them, an error explains."""


_GUARDS = {"maxLength", "maxItems", "maxProperties"}
_LARGEST_LIMIT = 50
"""The largest `maximum` that an agent might meet."""


def _unguarded(node: Any, named: bool = False) -> Any:
    """A schema without the limits that no sensible call meets; an error explains the others to whoever does."""
    if isinstance(node, list):
        return [_unguarded(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _unguarded(value, named=key == "properties" and not named)
        for key, value in node.items()
        if named or not (key in _GUARDS or (key == "maximum" and value > _LARGEST_LIMIT))
    }


def _goes_without_saying(key: str, value: Any) -> bool:
    return (
        value is False
        if key == "additionalProperties"
        else key == "default" and (value in (None, []) or value is False)
    )


def _compact(node: Any, named: bool = False) -> Any:
    """A schema without what says little to a reader, who pays for every word.

    Left out are some keywords, defaults that say only that a parameter is left out, and that other arguments are
    refused: all are.

    Args:
        node: A part of the schema.
        named: True if the node maps names of our own, among which `title` is no keyword.
    """
    if isinstance(node, list):
        return [_compact(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: _compact(value, named=key in ("properties", "$defs") and not named)
        for key, value in node.items()
        if named or not (key in _UNSAID or _goes_without_saying(key, value))
    }
    if isinstance(default := kept.get("default"), list) and len(default) == 1 and not named:
        kept["default"] = default[0]  # what takes a list of one takes the one
    return kept if named else _without_null(kept)


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A union without null: what is null counts as left out."""
    union = [part for part in schema.get("anyOf", []) if part != {"type": "null"}]
    if len(union) == 1:
        return {key: value for key, value in schema.items() if key != "anyOf"} | union[0]
    return schema
