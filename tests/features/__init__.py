"""The rows of docs/features.md, and the function that shows each of them on a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from nnterp_mcp.laboratory import Laboratory
    from tests.engine.plain import Edits, Plain
    from tests.serving import Caller

PAGE = Path(__file__).parents[2] / "docs" / "features.md"
_ROW = re.compile(r"^\| `([a-z-]+)` \|(.*)\|$", re.MULTILINE)
_CALL = re.compile(r"`([a-z_]+) (\{.*?\})`")

PARIS = "The capital of France is"
"""The prompt of most calls on the page."""


@dataclass(frozen=True)
class Call:
    """A tool call on the page."""

    tool: str
    arguments: dict[str, Any]


def read_page() -> dict[str, list[Call]]:
    """The calls of each row, by the row's name."""
    rows = _ROW.findall(PAGE.read_text(encoding="utf-8"))
    return {name: [Call(tool, json.loads(given)) for tool, given in _CALL.findall(cells)] for name, cells in rows}


@dataclass
class Ground:
    """One tiny model twice: as the tools and the library see it, and plain.

    Attributes:
        calls: The calls of the row that is shown.
        connect: Gives a client of a server on which that model is loaded.
    """

    lab: Laboratory
    plain: Plain
    calls: list[Call]
    connect: Callable[[], Caller]

    @property
    def model(self) -> Any:
        """The `StandardizedTransformer`; what tracing adds to tensors is in no type."""
        return self.lab.bench.model

    def run(self, at: int = 0) -> Any:
        """Makes one of the row's calls, as it stands on the page."""
        return self.lab.call(self.calls[at].tool, **self.calls[at].arguments)

    def ids(self, prompt: str = PARIS) -> list[int]:
        return self.model.tokenizer(prompt)["input_ids"]

    def logits(self, edits: Edits | None = None, prompt: str = PARIS) -> Tensor:
        """Of plain transformers, at every position, with hooks that make edits."""
        return self.plain.logits(self.ids(prompt), edits or {})

    def names(self, tokens: Any) -> list[str]:
        """What answers call tokens."""
        from nnterp_mcp.model.text.tokens import token_text

        return [token_text(self.model.tokenizer, int(token)) for token in tokens]

    def says(self, result: Any, edits: Edits | None = None, prompt: str = PARIS, at: int = 0) -> None:
        """Asserts that a lens at the last layer says what plain transformers with hooks says."""
        probs = self.logits(edits, prompt)[-1].double().softmax(-1).topk(3)
        found = result.readings[at].layers[-1].top
        assert [token for token, _ in found] == self.names(probs.indices)
        near([p for _, p in found], probs.values)


def near(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    """Asserts that two tensors, or lists of numbers, are equal but for rounding."""
    import torch

    one, other = (torch.as_tensor(value).detach().double() for value in (found, expected))
    assert one.shape == other.shape
    assert float((one - other).abs().max()) <= tolerance * max(1.0, float(other.abs().max()))


def clear(states: Tensor) -> None:
    """A plain edit: zeros."""
    states.zero_()


def far(found: Tensor, expected: Tensor) -> None:
    """Asserts that a change changed something."""
    assert float((found - expected).abs().max()) > 1e-3


FEATURES: dict[str, Callable[[Ground], None]] = {}
"""What shows each feature, by the name of its row."""


def shows(name: str) -> Callable[[Callable[[Ground], None]], Callable[[Ground], None]]:
    """Has a function show the feature of a row."""

    def register(function: Callable[[Ground], None]) -> Callable[[Ground], None]:
        assert name not in FEATURES, name
        FEATURES[name] = function
        return function

    return register
