"""The jobs, what each one measures, who does it, and the targets that are set for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .workloads import Workload, text, texts

Measure = Literal["seconds", "peak"]

LOOSER = {"float32": 0.0, "float16": 2e-2, "bfloat16": 1e-1}
"""By how much numbers of ours may differ from `raw` at the least, for what a model computes in."""

OURS = ("ours", "traces", "mcp")
"""Contestants whose numbers must be those of `raw`."""


@dataclass(frozen=True)
class Target:
    """What is to be reached.

    Attributes:
        who: The contestant for whom it is set.
        at_most: The most that is allowed: a ratio, or seconds where there is nobody to compare with.
        than: Whom it is compared with; None for nobody.
        measure: Of which of the two measures.
    """

    who: str
    at_most: float
    than: str | None = None
    measure: Measure = "seconds"

    def __str__(self) -> str:
        if self.than is None:
            return f"{self.who} at most {self.at_most * 1e3:g} ms"
        if self.measure == "peak":
            return f"peak memory of {self.who} at most {self.at_most:g} × that of {self.than}"
        if self.at_most < 1:
            return f"{self.who} at least {1 / self.at_most:g} × faster than {self.than}"
        return f"{self.who} at most {self.at_most:.3g} × {self.than}"


@dataclass(frozen=True)
class Job:
    """Something that is timed.

    Attributes:
        name: What `--jobs` calls it.
        measures: What is done in the time that is taken.
        play: The method of each contestant that does it.
        by: The contestants that can.
        work: What it is done on.
        targets: What is to be reached.
        tolerance: By how much a contestant of ours may differ from `raw` in any number.
        peak: Whether memory is measured too.
        builtin: Whether it can be done with the built-in model only.
        repeats: How often at most; None for as often as is asked.
    """

    name: str
    measures: str
    play: str
    by: Sequence[str]
    work: Workload
    targets: Sequence[Target] = ()
    tolerance: float = 1e-4
    peak: bool = False
    builtin: bool = False
    repeats: int | None = None


@dataclass(frozen=True)
class Growth:
    """How the cost of a play grows along an axis.

    Attributes:
        name: What `--jobs` calls it.
        play: The method of each contestant.
        axis: What grows: words of a prompt, prompts, or layers of a tiny model.
        values: How far.
        by: The contestants.
    """

    name: str
    play: str
    axis: Literal["words", "prompts", "layers"]
    values: Sequence[int]
    by: Sequence[str] = ("ours", "raw")

    def work(self, value: int) -> Workload:
        """What is done at one value of the axis."""
        if self.axis == "prompts":
            return Workload(texts(value, 12, 12))
        return Workload(text(value if self.axis == "words" else 12))


_QUESTION = "The capital of France is"
_SOURCES = (
    _QUESTION,
    "Paris is beautiful",
    "London is foggy today",
    "The sun rises in the",
    "My name is John and",
    "Water boils at a temperature",
    "He plays the violin",
    "The largest planet is",
)
_FRANCE, _SPAIN = (f"{country} is a country, and its capital is the" for country in ("France", "Spain"))

_EVERYONE = ("ours", "raw", "mcp", "nnterp", "transformer_lens")

JOBS = (
    Job(
        name="lens-1",
        measures="logit lens of 1 prompt: all layers at the last position",
        play="lens",
        by=_EVERYONE,
        work=Workload((_QUESTION,)),
        targets=(Target("ours", 1.06, "raw"), Target("ours", 1 / 3.5, "nnterp"), Target("mcp", 1.15, "raw")),
    ),
    Job(
        name="lens-32",
        measures="logit lens of 32 prompts of 5 to 12 words: all layers at the last position",
        play="lens",
        by=_EVERYONE,
        work=Workload(texts(32, 5, 12)),
        targets=(
            Target("ours", 1.10, "raw"),
            Target("mcp", 1.15, "raw"),
            Target("mcp", 0.1, "nnterp", measure="peak"),
        ),
        peak=True,
    ),
    Job(
        name="lens-1-all",
        measures="logit lens of 1 prompt of 12 words: all layers at all positions",
        play="lens",
        by=("ours", "raw"),
        work=Workload(text(12), positions="all"),
    ),
    Job(
        name="lens-32-all",
        measures="logit lens of 32 prompts of 5 to 12 words: all layers at all positions",
        play="lens",
        by=("ours", "raw"),
        work=Workload(texts(32, 5, 12), positions="all"),
        peak=True,
    ),
    Job(
        name="patchscope-1",
        measures="patchscope of 1 source: each layer's state into the repeat prompt at its own layer",
        play="patchscope",
        by=(*_EVERYONE, "traces"),
        work=Workload((_QUESTION,)),
        targets=(Target("ours", 1 / 20, "nnterp"),),
    ),
    Job(
        name="patchscope-8",
        measures="patchscope of 8 sources: each layer's state into the repeat prompt at its own layer",
        play="patchscope",
        by=(*_EVERYONE, "traces"),
        work=Workload(_SOURCES),
        targets=(Target("ours", 1 / 20, "nnterp"),),
        peak=True,
        repeats=3,
    ),
    Job(
        name="grid",
        measures="activation patching of 1 pair of prompts: every layer × position by itself",
        play="grid",
        by=("ours", "raw", "mcp", "traces"),
        work=Workload((_FRANCE, _SPAIN)),
        targets=(Target("ours", 1 / 12, "traces"),),
        peak=True,
        repeats=3,
    ),
    Job(
        name="prompts-256",
        measures="next-token probabilities of a target after 256 prompts of 5 to 60 words",
        play="run_prompts",
        by=_EVERYONE,
        work=Workload(texts(256, 5, 60)),
        targets=(Target("ours", 1 / 1.5, "nnterp"),),
        peak=True,
        repeats=3,
    ),
    Job(
        name="steering",
        measures="64 tokens generated, a vector added after the middle layer at every position",
        play="steered_generation",
        by=("ours", "raw", "nnterp"),
        work=Workload(("Once upon a time there was a king who",), new_tokens=64),
        targets=(Target("ours", 1.05, "raw"),),
    ),
    Job(
        name="attention",
        measures="entropy and mass on the first token of every head, 1 prompt of 64 words",
        play="attention",
        by=("ours", "raw", "mcp", "nnterp"),
        work=Workload(text(64)),
        targets=(Target("ours", 1.0, "raw"),),
        peak=True,
    ),
    Job(
        name="attribution",
        measures="gradient × input of each token, 1 prompt of 64 words",
        play="attribution",
        by=("ours", "raw"),
        work=Workload(text(64)),
        tolerance=1e-3,
    ),
    Job(
        name="call-stdio",
        measures="a call of `session` over stdio",
        play="call_stdio",
        by=("mcp",),
        work=Workload(()),
        targets=(Target("mcp", 5e-3),),
    ),
    Job(
        name="call-http",
        measures="a call of `session` over streamable HTTP",
        play="call_http",
        by=("mcp",),
        work=Workload(()),
        targets=(Target("mcp", 8e-3),),
    ),
    Job(
        name="call-sse",
        measures="a call of `session` over SSE",
        play="call_sse",
        by=("mcp",),
        work=Workload(()),
    ),
    Job(
        name="start",
        measures="the start of the server until it answers `initialize`; raw is `python -c 'import mcp'`",
        play="start",
        by=("mcp", "raw"),
        work=Workload(()),
        targets=(Target("mcp", 1.5, "raw"),),
    ),
    Job(
        name="load-warm",
        measures="load and checks of a model whose files were read before; raw is `from_pretrained` of the same folder",
        play="load",
        by=("ours", "raw", "nnterp", "transformer_lens"),
        work=Workload((_QUESTION,)),
        targets=(Target("ours", 1.5, "raw"),),
        repeats=5,
    ),
    Job(
        name="load-process",
        measures="load into a new process, imports included: `load_model`, and a process with `from_pretrained`",
        play="load_process",
        by=("mcp", "raw"),
        work=Workload((_QUESTION,)),
        repeats=5,
    ),
    Job(
        name="load-first",
        measures="first load of the built-in model: reading the GGUF file and writing the cache",
        play="load_first",
        by=("ours", "raw"),
        work=Workload((_QUESTION,)),
        targets=(Target("ours", 1.05, "raw"),),
        builtin=True,
        repeats=3,
    ),
)

GROWTHS = (
    Growth("growth-length", "lens", "words", (16, 64, 256, 1024)),
    Growth("growth-prompts", "lens", "prompts", (1, 8, 64, 256)),
    Growth("growth-layers", "lens", "layers", (2, 8, 32, 64)),
    Growth("growth-layers-patchscope", "patchscope", "layers", (2, 8, 32, 64)),
)


def choose(names: Sequence[str] | None, builtin: bool, dtype: str) -> list[Job]:
    """The jobs whose names begin with one of the names, all by default, as far as the model allows."""
    chosen = [job for job in JOBS if _is_meant(job.name, names) and (builtin or not job.builtin)]
    return [replace(job, tolerance=max(job.tolerance, LOOSER[dtype])) for job in chosen]


def choose_growths(names: Sequence[str] | None) -> list[Growth]:
    """The growths whose names begin with one of the names, all by default."""
    return [growth for growth in GROWTHS if _is_meant(growth.name, names)]


def _is_meant(name: str, names: Sequence[str] | None) -> bool:
    return names is None or any(name.startswith(given) for given in names)
