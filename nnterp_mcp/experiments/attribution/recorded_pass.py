"""Forward passes that autograd records, from the embeddings on."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnterp_mcp.engine.forward import Capture, Plan, forward
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.model.memory import free, of_pass
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch

ENTRANCE = Place("token_embeddings")


@dataclass(frozen=True)
class Track:
    """An edit after which the gradient along the states can be asked for; it changes no number.

    Attributes:
        place: Where.
        leaf: Autograd's graph begins here.
        value: Continues with these states instead, where the graph begins.
    """

    place: Place
    leaf: bool = False
    value: Tensor | None = None
    needs: Sequence[Place] = ()

    def resolve(self, window: Window, shape: Sequence[int], device: torch.device) -> Data:
        """The edit, for the interpreter."""
        return {"op": "leaf", "value": self.value} if self.leaf else {"op": "view"}


@dataclass(frozen=True)
class RecordedPass:
    """A pass that autograd has recorded.

    Attributes:
        logits: The logits after the last token of each row, in float32.
        states: The states at each hook point that was asked for, in the model's own layout; the embeddings always.
    """

    logits: Float[Tensor, "row vocabulary"]
    states: dict[Place, Tensor]


def record(
    model: StandardizedTransformer,
    batch: Batch,
    plan: Plan,
    places: Sequence[Place] = (),
    embeddings: Float[Tensor, "row position hidden"] | None = None,
) -> RecordedPass:
    """Runs a batch with autograd.

    Args:
        model: The model.
        batch: The prompts.
        plan: The operations on them.
        places: Hook points along whose states gradients are wanted.
        embeddings: Enter the model in place of its own.

    Raises:
        torch.OutOfMemoryError: The activations of all layers, which autograd keeps, are estimated not to fit.
    """
    require_room(model, batch, model.num_layers)
    tracked = [Track(ENTRANCE, leaf=True, value=embeddings), *(Track(at) for at in places if at != ENTRANCE)]
    edits = {**plan.edits, **{edit.place: [*plan.edits.get(edit.place, ()), edit] for edit in tracked}}
    captures = [Capture(edit.place, None) for edit in tracked]
    ends = [(row, len(prompt.ids) - 1) for row, prompt in enumerate(batch.prompts)]
    found = forward(model, batch, Plan(edits, plan.labels), captures, ends, gradients=True)
    assert found.logits is not None
    states = {edit.place: states for edit, states in zip(tracked, found.values, strict=True)}
    return RecordedPass(found.logits.float(), states)


def require_room(model: StandardizedTransformer, batch: Batch, layers: int) -> None:
    """Raises before a pass whose activations, which autograd keeps, are estimated not to fit.

    Args:
        model: The model.
        batch: The prompts.
        layers: How many layers autograd records.

    Raises:
        torch.OutOfMemoryError: They do not fit.
    """
    rows, columns = batch.inputs["input_ids"].shape
    if of_pass(model, rows, columns, model.attention == "eager", layers) > free(model.device):
        raise torch.OutOfMemoryError("estimated to be too large")


@contextmanager
def gradients(module: nn.Module) -> Generator[None]:
    """Within it autograd records, but for the weights: no gradient of one, and no activation saved for one."""
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    for weight in learning:
        weight.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for weight in learning:
            if not weight.is_inference():  # accelerate made it anew in a pass, of a layer whose weights are elsewhere
                weight.requires_grad_(True)
