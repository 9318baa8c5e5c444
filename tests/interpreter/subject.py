"""One model twice: behind the tools, and plain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nnterp_mcp.settings import Settings
from tests.interpreter.families import save_tiny
from tests.interpreter.language import Interpreter, Operation
from tests.interpreter.plain import Edit, Place, Plain, Ran, States
from tests.interpreter.text import Text

TIE = 1e-4
"""Nats between the two top tokens below which rounding may choose."""


class Tools(Protocol):
    """What calls tools, and holds what the last call kept beside its result."""

    arrays: dict[str, Tensor]

    def call(self, tool: str, /, **arguments: Any) -> Any:
        """Calls a tool."""
        ...


@dataclass
class Subject:
    """One model twice.

    Attributes:
        family: Its model type.
        attention: The attention implementation that the tools use.
        side: Where its tokenizer pads.
        folder: Where it is.
        lab: The tools.
    """

    family: str
    attention: str
    side: str
    folder: Path
    lab: Tools

    @classmethod
    def make(cls, family: str, attention: str, side: str, root: Path) -> Subject:
        """Builds a tiny model and loads it twice."""
        from nnterp_mcp.laboratory import Laboratory

        folder = save_tiny(family, root / f"{family}-{side}", side)
        settings = Settings(data=root / "data")
        lab = Laboratory(str(folder), dtype="float32", attention=attention, settings=settings)
        return cls(family, attention, side, folder, lab)

    @cached_property
    def by(self) -> Interpreter:
        """The interpreter of its language."""
        from transformers import AutoTokenizer

        return Interpreter(Plain.load(self.folder, self.family), AutoTokenizer.from_pretrained(self.folder))

    @property
    def plain(self) -> Plain:
        """The plain model."""
        return self.by.plain

    @cached_property
    def second(self) -> Subject:
        """Another model of the family, whose vectors and kept states are this one's."""
        folder = save_tiny(self.family, self.folder.parent / f"{self.folder.name}-second", self.side, seed=1)
        made = Subject(self.family, self.attention, self.side, folder, self.lab)
        made.by.vectors, made.by.kept = self.by.vectors, self.by.kept
        return made

    @property
    def name(self) -> str:
        """As reports name it."""
        return f"{self.family} {self.attention} {self.side}"

    @cached_property
    def widths(self) -> dict[str, int]:
        """The width of a state at each site of the first layer."""
        return {site: states.shape[-1] for (site, _), states in self.run([], [self.by.read("a")], 0).states.items()}

    def run(
        self,
        operations: Sequence[Operation],
        prompts: Sequence[Text],
        which: int,
        new: Sequence[int] = (),
        then: dict[Place, Edit] | None = None,
    ) -> Ran:
        """A pass over one prompt and what was generated after it.

        Args:
            operations: What is in force.
            prompts: The prompts of the request.
            which: The one that runs.
            new: The tokens after it.
            then: What a tool does itself at places, after the operations there.
        """
        ids = [*prompts[which].ids, *new]
        edits = {place: [*listed] for place, listed in self.by.edits(operations, prompts, which, len(ids)).items()}
        for place, edit in (then or {}).items():
            edits.setdefault(place, []).append(edit)
        with torch.no_grad():
            return self.plain.run(ids, edits)

    def lens(self, ran: Ran, layer: int) -> Tensor:
        """What the model would say at every position if it ended after a layer, as log-probabilities."""
        last: Place = ("layers_output", self.plain.layers - 1)
        states = ran.states["layers_output", layer]

        def replace(came: Tensor, seen: States) -> Tensor:
            return states

        with torch.no_grad():
            return normal(self.plain.run([0] * len(states), {last: [replace]}).logits)

    def say(
        self,
        operations: Sequence[Operation],
        prompts: Sequence[Text],
        which: int,
        count: int,
        then: dict[Place, Edit] | None = None,
    ) -> tuple[list[int], list[float], float, bool]:
        """The most likely text, token by token, with everything read again for each.

        Returns:
            The tokens, their log-probabilities, the least distance to a second choice, and whether the text ended.
        """
        new: list[int] = []
        found: list[float] = []
        gaps = [float("inf")]
        while len(new) < count and not (new and new[-1] in self._ends):
            best = normal(self.run(operations, prompts, which, new, then).logits[-1]).topk(2)
            new.append(int(best.indices[0]))
            found.append(float(best.values[0]))
            gaps.append(float(best.values[0] - best.values[1]))
        return new, found, min(gaps), new[-1] in self._ends

    @cached_property
    def _ends(self) -> set[int]:
        listed: Any = self.plain.model.generation_config.eos_token_id
        return {*(listed if isinstance(listed, list) else [listed]), self.by.tokenizer.eos_token_id}


def normal(logits: Tensor) -> Tensor:
    """Log-probabilities, in double precision."""
    return logits.detach().double().log_softmax(-1)
