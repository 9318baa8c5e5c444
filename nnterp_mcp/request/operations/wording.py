"""Operations in words: operation, site, layers, heads, positions, steps and source of every active intervention.

Every part is bounded, so that no label needs to be cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from nnterp_mcp.formatting import elided, plural, quoted, ranges
from nnterp_mcp.request.operations.kinds import (
    Add,
    EditFeatures,
    Knockout,
    Mean,
    Operation,
    Patch,
    ProjectOut,
    Scale,
    SetAttention,
    Skip,
    StateOperation,
    Swap,
    site_of,
)
from nnterp_mcp.request.operations.operands import IndexSpec, Source, TokenDifference
from nnterp_mcp.request.positions import PositionSpec, TextPosition, goes_on
from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.request.sites import HEAD_SITES

_NAMED = 3
"""Prompts, and positions of a list, that a label names one by one."""


def describe(operation: Operation) -> str:
    """An operation with everything that determines what it does, as answers name active interventions."""
    return ", ".join([_opening(operation), *_parts(operation)])


def label_of(vector: str | TokenDifference | tuple[float, ...]) -> str:
    """The name of a vector in answers and errors."""
    if isinstance(vector, str):
        return f"the vector {vector!r}"
    if isinstance(vector, TokenDifference):
        return f"{vector.positive!r} − {vector.negative!r}" if vector.negative else repr(vector.positive)
    return "the vector given"


def describe_positions(noun: str, positions: Sequence[PositionSpec], first_left_out: bool = False) -> str:
    """Positions as they were asked for; where `all` leaves out the first token, that is said."""
    many = _PLURALS.get(noun, f"{noun}s")
    if tuple(positions) == ("all",):
        return f"all {many} but the first" if first_left_out else f"all {many}"
    named = [_position(at) for at in positions[:_NAMED]]
    more = [f"… ({len(positions)})"] if len(positions) > _NAMED else []
    several = len(positions) > 1 or ":" in str(positions[0])
    return f"{many if several else noun} {', '.join([*named, *more])}"


def _opening(operation: Operation) -> str:
    """The operation with its operand and site."""
    if isinstance(operation, Skip):
        return "skip"
    if isinstance(operation, SetAttention):
        return f"set_attention to {operation.pattern if isinstance(operation.pattern, str) else 'a matrix'}"
    if isinstance(operation, EditFeatures):
        return _feature_edit(operation)
    if isinstance(operation, Knockout):
        return "knockout" if operation.renormalise else "knockout without renormalising"
    operand = ""
    if isinstance(operation, Scale):
        operand = f" by {operation.factor:g}"
    elif isinstance(operation, Add):
        operand = f" {operation.factor:g} × {label_of(operation.vector)}"
    elif isinstance(operation, ProjectOut):
        operand = f" {label_of(operation.vector)}"
    elif isinstance(operation, Patch) and operation.along is not None:
        operand = f" along {label_of(operation.along)}"
    elif isinstance(operation, Swap):
        times = "" if operation.factor == 1 else f" {operation.factor:g} ×"
        operand = f"{times} {label_of(operation.vector)} and {label_of(operation.other)}"
    return f"{operation.op}{operand} at {site_of(operation)}"


def _feature_edit(operation: EditFeatures) -> str:
    operand = {
        "scale": f" by {operation.factor or 0.0:g}",
        "zero": "",
        "add": f" {operation.value or 0.0:g} to",
        "set": f" to {operation.value or 0.0:g}",
    }[operation.op]
    features = f"{_indices('feature', operation.features)} of {quoted(elided(operation.dictionary))}"
    along = "" if operation.random is None else f" along random direction {operation.random}, as far"
    if operation.op == "add":
        return f"add{operand} {features}{along}"
    return f"{operation.op} {features}{operand}{along}"


def _parts(operation: Operation) -> Iterator[str]:
    if operation.layers is not None:
        yield _indices("layer", operation.layers)
    if not isinstance(operation, Skip | EditFeatures):
        by_head = not isinstance(operation, StateOperation) or site_of(operation) in HEAD_SITES
        if by_head:
            yield _indices("head", "all" if operation.heads is None else operation.heads)
    if isinstance(operation, StateOperation | EditFeatures):
        if isinstance(operation, StateOperation) and operation.neurons is not None:
            yield _indices("neuron", operation.neurons)
        yield describe_positions(
            "position", operation.positions, isinstance(operation, ProjectOut | Swap | EditFeatures)
        )
    elif not isinstance(operation, Skip):
        yield describe_positions("query", operation.query_positions)
    if isinstance(operation, Knockout):
        yield describe_positions("key", operation.key_positions)
    if operation.prompts != "all":
        yield f"only {_indices('prompt', operation.prompts)}"
    yield _steps(operation)
    if isinstance(operation, Patch):
        yield _source(operation.source)
    if isinstance(operation, Mean):
        yield _averaged(operation)
    if isinstance(operation, ProjectOut) and operation.over is not None:
        yield f"to its mean over {_prompts(operation.over)} position by position, unedited"


def _steps(operation: Operation) -> str:
    """The decode steps; an operation whose positions end with the prompt never reaches a new token."""
    onward = isinstance(operation, Skip) or (
        goes_on(_positions(operation))
        and not isinstance(operation, Patch)
        and not (isinstance(operation, Mean) and operation.over_positions is None)
        and not (isinstance(operation, ProjectOut) and operation.over is not None)
        and not (isinstance(operation, SetAttention) and not isinstance(operation.pattern, str))
    )
    steps = "every step" if operation.steps == "all" else _indices("step", operation.steps)
    return steps if onward else "prompt tokens only" + ("" if operation.steps == "all" else f", {steps}")


def _positions(operation: StateOperation | EditFeatures | Knockout | SetAttention) -> Sequence[PositionSpec]:
    """The positions that an operation changes, or whose queries it changes."""
    on_states = isinstance(operation, StateOperation | EditFeatures)
    return operation.positions if on_states else operation.query_positions


def _source(source: Source) -> str:
    """The origin of a patch; what is left out is the same as where the patch goes."""
    position = "the same positions" if source.position is None else describe_positions("position", source.position)
    layer = "the same layer" if source.layer is None else f"layer {source.layer}"
    if source.run is not None:
        prompt = "the prompt of the same index" if source.prompt is None else f"prompt {source.prompt}"
        return f"from {position} of {layer} of {prompt} in {source.run}"
    prompt = "the same prompt" if source.prompt is None else _prompt(source.prompt)
    return f"from {position} of {layer} of {prompt}, unedited"


def _averaged(operation: Mean) -> str:
    """The prompts and positions of a mean."""
    prompts = _prompts(operation.over)
    if operation.over_positions is None:
        return f"over {prompts} position by position, unedited"
    return (
        f"over {prompts}, {describe_positions('position', operation.over_positions, True)} of them together, unedited"
    )


def _prompts(over: Literal["all"] | tuple[int | Prompt, ...]) -> str:
    if over == "all":
        return "all prompts of the call"
    named = ", ".join(map(_prompt, over[:_NAMED])) + (", …" if len(over) > _NAMED else "")
    return f"{plural(len(over), 'prompt')} ({named})"


def _prompt(prompt: int | Prompt) -> str:
    if isinstance(prompt, int):
        return f"prompt {prompt}"
    return quoted(elided(prompt if isinstance(prompt, str) else prompt[-1].content))


_PLURALS = {"query": "queries"}


def _position(at: PositionSpec) -> str:
    if isinstance(at, int | str):
        return str(at)
    if isinstance(at, TextPosition) and not at.occurrence:
        return quoted(elided(at.text))
    return elided(at.model_dump_json(exclude_defaults=True), 80)


def _indices(noun: str, asked: IndexSpec) -> str:
    if asked == "all":
        return f"all {noun}s"
    if isinstance(asked, str):
        return f"{noun}s {asked}"
    numbers = [asked] if isinstance(asked, int) else sorted(set(asked))
    return f"{noun}{'s' if len(numbers) > 1 else ''} {ranges(numbers)}"
