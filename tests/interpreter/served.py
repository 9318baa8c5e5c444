"""The tools of a server: edits that stay in force, and states that runs have kept."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.runs.results import read_result
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset import specs
from tests.interpreter.cases import Cases
from tests.interpreter.families import save_tiny
from tests.interpreter.language import Kept, Operation
from tests.interpreter.runs import Outcome, compare
from tests.interpreter.subject import Subject
from tests.serving import Caller, stdio, text

CALLS = 6
"""Calls between two changes of what stays in force."""


@dataclass
class Server:
    """The tools as a client sees them, with the whole results that the server has recorded.

    Attributes:
        caller: A client.
        store: The server's runs.
        arrays: Those of the last call.
        run: Its id.
    """

    caller: Caller
    store: RunStore
    arrays: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    run: str = ""

    def call(self, tool: str, /, **arguments: Any) -> Any:
        """Calls a tool and reads its record.

        Raises:
            InvalidRequest: The server refuses; with what it says.
        """
        answer = self.caller.call(tool, **arguments)
        if answer.is_error:
            raise InvalidRequest(text(answer))
        self.run = str((answer.structured_content or {}).get("run_id", ""))
        if not self.run:
            return None
        record = self.store.read(self.run)
        self.arrays = {
            name: torch.from_numpy(self.store.read_array(self.run, name, (...,)).copy()) for name in record.arrays
        }
        return read_result(self.store, record, specs())


@contextmanager
def serve(family: str, root: Path) -> Generator[Subject]:
    """A tiny model twice: loaded in a server, and plain."""
    folder, data = save_tiny(family, root / family, "left"), root / "data"
    with stdio(data=data, folders=f'["{root}"]') as caller:
        answer = caller.call("load_model", model=str(folder), dtype="float32")
        assert not answer.is_error, text(answer)
        yield Subject(family, "auto", "served", folder, Server(caller, RunStore(Settings(data=data).runs)))


def play_served(subject: Subject, seed: int, count: int) -> Iterator[Outcome]:
    """Draws so many calls, some under edits that stay in force, some that patch from the states of a run."""
    assert isinstance(subject.lab, Server)
    cases = Cases(subject, Random(f"served {subject.family} {seed}"))
    kept: Sequence[Operation] = ()
    for number in range(count):
        if number % CALLS == 0:
            kept = cases.lasting()
            subject.lab.call("edit_model", interventions=list(kept))
        if number % CALLS == 1:
            yield _collect(subject, cases, kept)
        tool, arguments = cases.draw(without=("make_vector", "features", "compare_models"))
        yield compare(subject, (tool, arguments), kept)


def _collect(subject: Subject, cases: Cases, kept: Sequence[Operation]) -> Outcome:
    """Keeps the states of a run, from which later calls may patch."""
    assert isinstance(subject.lab, Server)
    prompts, site = cases.prompts(), cases.dice.choice([site for site in cases.sites if site != "token_embeddings"])
    asked = {"prompts": prompts, "site": site, "positions": "all", "interventions": []}
    outcome = compare(subject, ("collect_activations", asked), kept)
    texts = [subject.by.read(prompt) for prompt in prompts]
    states = [subject.run(kept, texts, which).states for which in range(len(texts))]
    subject.by.kept[subject.lab.run] = Kept(site, texts, states)
    return outcome
