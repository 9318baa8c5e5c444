"""Arguments of `load_model`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from nnterp_mcp.contract import Params
from nnterp_mcp.request.arguments import LONGEST_NAME, LONGEST_STRING, shown

_REVISION = re.compile(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*")
"""As git allows names, in which no part begins with a dot: the Hub's cache takes a revision for a path."""


def _check_revision(revision: str | None) -> str | None:
    if revision is not None and _REVISION.fullmatch(revision) is None:
        raise ValueError(f"revision must be a branch, tag or commit on the Hub, not {shown(revision)}")
    return revision


class LoadModelParams(Params):
    """The model, its precision, device and backend."""

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
        Field(description="auto is float32 on a CPU, the checkpoint's own on an accelerator."),
    ] = "auto"
    device: Annotated[
        str,
        Field(
            max_length=LONGEST_NAME,
            description="auto (an accelerator, if any), cpu, cuda, cuda:1 or mps.",
        ),
    ] = "auto"
    attention: Annotated[
        Literal["auto", "sdpa", "eager"],
        Field(description="eager lets attention be read; auto switches when it is."),
    ] = "auto"
    quantization: Annotated[
        Literal["8bit", "4bit"] | None,
        Field(description="With bitsandbytes."),
    ] = None
    adapter: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=LONGEST_STRING,
            description="PEFT LoRA folder or Hub id; HANDLE@0.5 then applies half.",
        ),
    ] = None
    backend: Annotated[Literal["local", "ndif"], Field(description="ndif runs the model on a remote NDIF service.")] = (
        "local"
    )
