"""Result and answer of `load_model`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, WithJsonSchema

from nnterp_mcp.contract import Answer, Result, ResultPart
from nnterp_mcp.formatting import plural, size


class CheckLine(ResultPart):
    """One check that the model went through when it was loaded."""

    name: str
    passed: bool
    detail: str


class LoadModelResult(Result):
    """The card of a loaded model; sizes in bytes.

    Attributes:
        memory: Of an adapted model its own weights alone, without those that it shares.
        checked_before: The checks are those of an earlier load of the same files.
        adapter: The adapter in words; None without one.
        base: The handle of the model whose weights an adapted model shares.
        adapter_of: The base that the adapter names.
        adapter_revision: The Hub's commit of the adapter.
    """

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
    checked_before: bool = False
    already_loaded: bool = False
    adapter: str | None = None
    base: str | None = None
    adapter_of: str | None = None
    adapter_revision: str | None = None


class LoadModelAnswer(Answer):
    """The card as an agent sees it."""

    model: Annotated[str, Field(description="The handle for later calls.")]
    card: Annotated[dict[str, str | int | float | None], WithJsonSchema({"type": "object"})]
    checks: list[str]

    def body(self) -> list[str]:
        """The card, then the checks."""
        card = self.card
        context = "" if card["context"] is None else f", context {card['context']}"
        revision = "" if card["revision"] is None else f" at {card['revision']}"
        layers, heads = int(card["num_layers"] or 0), int(card["num_heads"] or 0)
        parameters, memory = float(card["parameters"] or 0), float(card["memory"] or 0)
        return [
            f"model: {self.model}",
            f"architecture: {card['architecture']}, {plural(layers, 'layer')} (0 to {layers - 1}), "
            f"{plural(heads, 'head')}, width {card['hidden_size']}, vocabulary {card['vocab_size']}{context}",
            f"weights: {parameters / 1e6:.1f} M parameters, {card['dtype']} on {card['device']}, {size(memory)}, "
            f"attention {card['attention']}, from {card['source']}{revision}",
            *([f"adapter: {card['adapter']}"] if card.get("adapter") else []),
            *(f"check {line}" for line in self.checks),
        ]
