"""Runs of every tool that records them, made by a real server on a tiny model."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.runs.vectors import VectorStore
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset import specs
from tests.dictionaries import DICTIONARY, random_dictionary
from tests.serving import Caller, stdio, text

CAPITALS = {"capital": ["Paris", "Rome"], "traps": "London"}

EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "vector": (
        "make_vector",
        {"name": "joy", "method": "mean_difference", "positive": ["I won", "We won"], "negative": ["I lost", "It is"]},
    ),
    "random vector": ("make_vector", {"name": "chance", "method": "random", "norm": 2.0, "seed": 7}),
    "lens": (
        "logit_lens",
        {
            "prompts": ["The capital of France is", 'He said: "Roma è \\ 🏛"\n\t'],
            "positions": [0, "last"],
            "targets": CAPITALS,
            "interventions": [
                {"op": "add", "layers": 1, "vector": "joy", "factor": 2, "positions": "last"},
                {"op": "patch", "layers": [2], "positions": -1, "from": {"prompt": "The capital of Italy is"}},
            ],
        },
    ),
    "patchscope": ("patchscope", {"source_prompts": "The capital of France", "max_new_tokens": 2, "top_k": 2}),
    "patchscope of vectors": ("patchscope", {"source_vectors": ["joy", "chance"], "factor": 3.0}),
    "attention": ("attention_probs", {"prompts": ["A B A B A", "one two"], "layers": "1:3"}),
    "sampling": (
        "generate",
        {
            "prompts": "Once upon",
            "max_new_tokens": 6,
            "temperature": 1.3,
            "seed": 5,
            "logprobs": True,
            "interventions": [{"op": "zero", "site": "heads_output", "layers": [1, 2], "heads": [0, 3]}],
        },
    ),
    "steering": (
        "steer",
        {"prompts": ["I feel", "We are"], "vector": "joy", "layers": [1, 2], "factors": [-4, 4], "control": True},
    ),
    "steering texts": (
        "steer",
        {
            "prompts": "I feel",
            "vector": {"positive": " Paris", "negative": " Rome"},
            "layers": 2,
            "factors": 3,
            "max_new_tokens": 3,
        },
    ),
    "prompt set": (
        "run_prompts",
        {
            "prompts": [{"prompt": "Rome is in", "targets": {"a": "Italy"}}, {"prompt": "é", "targets": {"a": "x"}}],
            "readout": "logit_lens",
        },
    ),
    "patching": (
        "patch_activations",
        {
            "clean": "The capital of France is",
            "corrupted": {"noise": 3.0, "positions": {"text": "France"}, "samples": 2},
            "targets": {"answer": "Paris", "wrong": "London"},
            "layers": [1, 2],
            "control": True,
        },
    ),
    "probe": (
        "train_probe",
        {"prompts": {"a": ["Rome is", "Paris", "Oslo"], "b": ["one two", "six", "two"]}, "save_as": "a", "shuffles": 2},
    ),
    "saved probe": (
        "train_probe",
        {"probe": "a", "prompts": {"a": ["Lima is", "Kyiv"], "b": ["nine", "one ten"]}},
    ),
    "states": (
        "collect_activations",
        {"prompts": {"a": ["Rome is", "Paris"], "b": ["one two three", "four"]}, "positions": "all", "layers": [1, 2]},
    ),
    "attribution": (
        "attribute",
        {"prompts": "The capital of France is", "targets": {"answer": "Paris", "wrong": "London"}, "by": "neuron"},
    ),
    "dictionary": ("load_features", {"name": "random", "source": str(DICTIONARY)}),
    "features": (
        "features",
        {"dictionary": "random", "prompts": {"a": ["Rome is", "Paris"], "b": ["one two three", "four"]}},
    ),
}
EXAMPLES |= {
    tool: (tool, dict(spec.examples[0]))
    for tool, spec in specs().items()
    if spec.place == "worker" and spec.recorded and tool not in {tool for tool, _ in EXAMPLES.values()}
}
"""What is run, in this order: a tool with its arguments under a name. Vectors come first; a tool of which no test asks
for a particular run has its first example."""


@dataclass(frozen=True)
class Recorded:
    """What a server left behind.

    Attributes:
        settings: Where it lies.
        ids: The id of each example's run.
        texts: What its caller was told.
        caller: A client of the server, which goes on.
    """

    settings: Settings
    ids: dict[str, str]
    texts: dict[str, str]
    caller: Caller

    @property
    def store(self) -> RunStore:
        return RunStore(self.settings.runs)

    @property
    def vectors(self) -> VectorStore:
        return VectorStore(self.settings.data / "vectors")


@contextmanager
def record_examples(model: Path, data: Path) -> Generator[Recorded]:
    """Has a server on a tiny model run every example."""
    random_dictionary()
    with stdio(data=data) as caller:
        answers = {"": caller.call("load_model", model=str(model))}
        answers |= {name: caller.call(tool, **arguments) for name, (tool, arguments) in EXAMPLES.items()}
        texts = {name: text(answer) for name, answer in answers.items()}
        assert not any(answer.is_error for answer in answers.values()), texts
        del answers[""]
        ids = {name: answer.structured_content["run_id"] for name, answer in answers.items()}
        yield Recorded(Settings(data=data), ids, texts, caller)
