"""Passes on a served model, packed into few requests."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from nnterp_mcp.engine.executors.ndif.kernels import read_pass, read_replayed
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.traces import run_passes
from nnterp_mcp.engine.executors.ndif.wire_format import Resolved, edit_entries, steps_of
from nnterp_mcp.engine.forward import Captured, Pass, Plan
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt

PASSES = 8
"""Forward passes in one request: few enough that a call can be stopped, and its progress told, in between."""


def run_served_pass(model: ServedTransformer, work: Pass, gradients: bool = False) -> Captured:
    """`forward.run_pass` on a served model.

    Raises:
        Unsupported: Gradients, or logits that are not reduced, are not brought from there.
    """
    if gradients or (work.logits is not None and work.reduction is None):
        what = "gradients" if gradients else "whole logits"
        raise Unsupported(
            f"{what} of {model.name} are not brought from NDIF, which serves it",
            "Load the model with backend 'local' for it.",
        )
    asked = work.reduction
    options: Data = {
        "count": len(work.captures),
        "head": model.head,
        "reduce": None if asked is None else asked.reduce,
        "options": {} if asked is None else asked.options,
        "width": None if asked is None else asked.width,
        "of_captures": asked is not None and asked.of_captures,
    }
    if work.ends is not None:
        options |= {"rows": work.ends[0], "columns": work.ends[1]}
    steps = steps_of(model, Window.over(work.batch), work.plan, work.captures, work.ends)
    inputs = inputs_of(work.batch, last=work.ends is None or bool(model.head))
    passes = [{"inputs": inputs, "steps": steps, "read": read_pass, "options": options}]
    if options["of_captures"] and not model.head:
        rows = len(work.captures) * len(work.captures[0].options["rows"])
        passes.append(replayed(model, rows, "states", read_replayed, options))
    with _attention_for(model, work):
        found = run_passes(model.connection, passes)[-1]
    return Captured(found["values"], None, found["numbers"])


@contextmanager
def _attention_for(model: ServedTransformer, work: Pass) -> Generator[None]:
    """While this lasts, requests ask for eager attention if a capture needs the probabilities."""
    before = model.attention
    if all(capture.place.site != "attention_probabilities" for capture in work.captures):
        yield
        return
    model.set_attention("eager")
    try:
        yield
    finally:
        model.set_attention("eager" if before == "eager" else "sdpa")


def inputs_of(batch: Batch, last: bool = False) -> Data:
    """The arguments of a forward pass over a batch.

    Args:
        batch: The batch.
        last: Whether the model need not form logits but at the last column.
    """
    return {**batch.inputs, "use_cache": False} | ({"logits_to_keep": 1} if last else {})


def replayed(model: ServedTransformer, rows: int, states: torch.Tensor | str, read: object, options: Data) -> Data:
    """A pass of one token a row, in which given states stand for what the last layer made.

    Args:
        model: The model.
        rows: How many states there are.
        states: The states (row, hidden), or the name under which an earlier pass carries them (row, 1, hidden).
        read: What is read of the pass.
        options: What that is told.
    """
    change: Data = {"op": "replace", "value": states}
    if isinstance(states, str):
        change = {"op": "take", "name": states, "index": (torch.arange(rows), torch.zeros(rows, dtype=torch.long))}
    last = Place("layers_output", model.anatomy.last.index)
    plan = Plan({last: [Resolved(last, edit_entries(range(rows), [0] * rows, **change))]})
    steps = steps_of(model, Window([EncodedPrompt(0, "", [1], [])] * rows, [0] * rows, 0, 1), plan)
    inputs = {"input_ids": torch.ones(rows, 1, dtype=torch.long), "use_cache": False}
    return {"inputs": inputs, "steps": steps, "read": read, "options": options}
