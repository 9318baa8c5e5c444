"""`load_model`: what it takes and what it answers."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from nnterp_mcp.contract import Answer, Params, Result, ToolSpec
from nnterp_mcp.render import lines, plural, seconds, size
from nnterp_mcp.request.arguments import LONGEST_NAME, LONGEST_STRING
from nnterp_mcp.request.fields import shown

_REVISION = re.compile(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*")
"""As git allows names, in which no part begins with a dot: the Hub's cache takes a revision for a path."""


def _check_revision(revision: str | None) -> str | None:
    if revision is not None and _REVISION.fullmatch(revision) is None:
        raise ValueError(f"revision must be a branch, tag or commit on the Hub, not {shown(revision)}")
    return revision


class LoadModelParams(Params):
    """What to load, and how."""

    model: Annotated[
        str,
        Field(
            min_length=1,
            max_length=LONGEST_STRING,
            description="'smollm2-135m' (built in), a Hugging Face Hub id, a local folder or a .gguf file.",
        ),
    ]
    revision: Annotated[
        str | None,
        AfterValidator(_check_revision),
        Field(max_length=LONGEST_NAME, description="Branch, tag or commit on the Hub."),
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="auto: float32 on a CPU, the checkpoint's own on an accelerator."),
    ] = "auto"
    device: Annotated[
        str,
        Field(
            max_length=LONGEST_NAME,
            description="auto, cpu, cuda, cuda:1, mps; auto takes an accelerator where there is one.",
        ),
    ] = "auto"
    attention: Annotated[
        Literal["auto", "sdpa", "eager"],
        Field(description="eager lets attention probabilities be read; auto switches when they are."),
    ] = "auto"
    quantization: Annotated[Literal["8bit", "4bit"] | None, Field(description="Needs bitsandbytes.")] = None
    backend: Annotated[Literal["local", "ndif"], Field(description="ndif: remote.")] = "local"


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


def digest(result: LoadModelResult) -> LoadModelAnswer:
    """The card in words."""
    failed = [check.name for check in result.checks if not check.passed]
    state = "was loaded already" if result.already_loaded else f"is loaded ({seconds(result.seconds)})"
    passed = f"{len(result.checks) - len(failed)} of {plural(len(result.checks), 'check')} passed"
    return LoadModelAnswer(
        finding=f"{result.handle} {state}; {passed}.",
        notes=_notes(result, failed),
        model=result.handle,
        card=result.model_dump(exclude={"handle", "checks", "already_loaded", "verified"}),
        checks=[f"{check.name}: {'passed' if check.passed else 'FAILED'}, {check.detail}" for check in result.checks],
    )


def _notes(result: LoadModelResult, failed: list[str]) -> list[str]:
    notes = [f"What needs {name} is refused for this model." for name in failed]
    if not result.verified:
        notes.append(f"{result.architecture} is outside the table of verified architectures: trust the checks above.")
    return notes


def render(answer: LoadModelAnswer) -> str:
    """The card as text."""
    card = answer.card
    context = "" if card["context"] is None else f", context {card['context']}"
    revision = "" if card["revision"] is None else f" at {card['revision']}"
    layers, heads = int(card["num_layers"] or 0), int(card["num_heads"] or 0)
    parameters, memory = float(card["parameters"] or 0), float(card["memory"] or 0)
    return lines(
        answer,
        f"model: {answer.model}",
        f"architecture: {card['architecture']}, {plural(layers, 'layer')} (0 to {layers - 1}), "
        f"{plural(heads, 'head')}, width {card['hidden_size']}, vocabulary {card['vocab_size']}{context}",
        f"weights: {parameters / 1e6:.1f} M parameters, {card['dtype']} on {card['device']}, {size(memory)}, "
        f"attention {card['attention']}, from {card['source']}{revision}",
        *(f"check {line}" for line in answer.checks),
    )


SPEC = ToolSpec(
    name="load_model",
    title="Load a model",
    description=(
        "Loads an open-weight causal language model into a process of its own, where it stays warm for every other "
        "tool and every client until unload_model. Checks that readings will be exact. Loading what is loaded "
        "answers at once. The handle in the answer lives until then or until the server ends."
    ),
    params=LoadModelParams,
    result=LoadModelResult,
    answer=LoadModelAnswer,
    digest=digest,
    render=render,
    place="server",
    read_only=False,
    open_world=True,
    served=True,
)
