"""Makes the first calls after a load as fast as later ones: imports, then small calls, the first before the answer.

What is lazy is then there: the tools' modules, the hash of the weights, pages of mapped weights, the kernels' choices,
and what is found once for each model, such as the ways of generation and of sharing prefixes that are exact on it.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from nnterp_mcp.errors import Cancelled
from nnterp_mcp.toolset import specs
from nnterp_mcp.worker.collection import collection_paused
from nnterp_mcp.worker.execution import run_tool
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench

MOST = 30.0
"""Seconds that warming takes, at most: on a busy machine, a few times what it takes on a quiet one."""

_IDLE = 2.0
"""Seconds without a call after which the other tools' libraries are imported: no call can interrupt that."""

_TEXT, _OTHER = "The capital of France is", "The capital of Spain is"
_TARGETS = {"answer": " Paris", "wrong": " Madrid"}
_CALLS: dict[str, dict[str, Any]] = {
    "logit_lens": {"prompts": _TEXT, "targets": _TARGETS},
    "generate": {"prompts": _TEXT, "max_new_tokens": 2},
    "patchscope": {"source_prompts": _TEXT},
    "attention_probs": {"prompts": _TEXT},
    "run_prompts": {"prompts": [_TEXT, _OTHER]},
    "patch_activations": {"clean": _TEXT, "corrupted": _OTHER, "targets": _TARGETS},
    "attribute": {"prompts": _TEXT, "targets": _TARGETS},
}
WARMING_CALLS = len(_CALLS)
"""The steps that call a tool, which come first."""


@cache
def import_libraries() -> None:
    """Imports what the tools run on, before the process has a model, and spares the garbage collector all of it.

    A collection that went through hundreds of thousands of objects, which live as long as the process, would take as
    long as a pass of a small model, in the middle of some call.
    """
    with collection_paused():
        for tool in _CALLS:
            importlib.import_module(f"nnterp_mcp.toolset.{tool}.run")
        gc.freeze()


@dataclass
class _Warming(Job):
    """A call without a caller, which ends as soon as one waits."""

    until: float = 0.0
    waiting: Callable[[], bool] = lambda: False

    def check(self) -> None:
        if self.waiting() or time.monotonic() > self.until:
            raise Cancelled("a call waits for the model")


Step = Callable[[Job], object]


def warm(steps: Iterable[Step], waiting: Callable[[], bool], seconds: float = MOST) -> None:
    """Warms a model that was loaded.

    Args:
        steps: What is run, one after another.
        waiting: True as soon as a call waits; warming then ends before the model's next layer.
        seconds: How long it takes at most.
    """
    until = time.monotonic() + seconds
    for step in steps:
        job = _Warming(0, lambda progress: None, until=until, waiting=waiting)
        try:
            job.check()
            step(job)
        except Cancelled:
            return
        except BaseException:  # what a model cannot do is said to whoever asks for it
            continue


def warming_steps(bench: Bench) -> Iterator[Step]:
    """The steps that warm a model, the shortest and most needed first."""
    for tool, arguments in _CALLS.items():
        yield partial(_call, bench, tool, arguments)
    yield lambda job: bench.environment
    yield _wait
    for name in (name for name, spec in specs().items() if spec.place != "server"):
        yield lambda job, name=name: importlib.import_module(f"nnterp_mcp.toolset.{name}.run")


def _wait(job: Job) -> None:
    until = time.monotonic() + _IDLE
    while time.monotonic() < until:
        job.check()
        time.sleep(0.02)


def _call(bench: Bench, tool: str, arguments: dict[str, Any], job: Job) -> None:
    spec = specs()[tool]
    spec.summarize(run_tool(bench, spec, spec.parse(arguments), job))
