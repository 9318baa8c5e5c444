"""Passes on a served model, as the data that is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnterp_mcp.engine.executors.ndif.kernels import read_pass, read_replayed
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.refusals import not_offered
from nnterp_mcp.engine.executors.ndif.traces import run_passes
from nnterp_mcp.engine.executors.ndif.wire_format import spot_of, steps_of
from nnterp_mcp.engine.forward import NOTHING, Captured, LogitReduction, Pass, attention_for
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.model.text.tokenization import Batch

PASSES = 8
"""Forward passes in one request: few enough that a call can be stopped, and its progress reported, in between."""


def run_served_pass(model: ServedTransformer, work: Pass, gradients: bool = False) -> Captured:
    """`forward.run_pass` on a served model.

    Raises:
        Unsupported: Gradients, or logits that are not reduced, are asked for.
    """
    if gradients:
        raise not_offered(model.name, "gradients")
    require_reduced(model, work.logits is None or work.reduction is not None)
    asked, names = work.reduction, range(len(work.captures))
    of_captures = asked is not None and asked.of_captures
    ends = None if of_captures else work.ends
    steps = steps_of(model, Window.over(work.batch), work.plan, work.captures, ends)
    passes = [pass_data(model, inputs_of(work.batch), steps, captures=names, ends=ends, reduction=asked)]
    if of_captures and not model.head:
        rows = len(work.captures) * len(work.captures[0].options["rows"])
        passes.append(replayed(model, rows, "states", read_replayed, passes[0]["options"]))
    with attention_for(model, NOTHING, work.captures):
        found = run_passes(model.connection, passes)[-1]
    return Captured([found["values"][name] for name in names if not of_captures], None, found["numbers"])


def require_reduced(model: ServedTransformer, reduced: bool) -> None:
    """Refuses logits that are not reduced next to the model.

    Raises:
        Unsupported: They are not.
    """
    if not reduced:
        raise not_offered(model.name, "whole logits")


def pass_data(
    model: ServedTransformer,
    inputs: Data,
    steps: Sequence[Data],
    *,
    captures: Sequence[Any] = (),
    ends: tuple[Tensor, Tensor] | None = None,
    reduction: LogitReduction | None = None,
    compares: bool = False,
    carries: Sequence[str] = (),
    cache: Data | None = None,
) -> Data:
    """A pass with what is read of it.

    Args:
        inputs: The arguments of its forward pass.
        steps: The steps of the interpreter.
        captures: The names of the captures that are returned.
        ends: Rows and columns at which logits are wanted; None for nowhere.
        reduction: What the logits, or the captures, are reduced to.
        compares: The reduction compares with the reference of the request.
        carries: What later passes of the request take: `reference`, the log-probabilities of the first row; `source`,
            the captures, which then are not returned.
        cache: Keys and values that are filled or continued from, as in `kernels.with_prefix`.
    """
    of_captures = reduction is not None and reduction.of_captures
    options: Data = {
        "captures": list(captures),
        "head": model.head,
        "ends": ends is not None,
        "reduce": None if reduction is None else reduction.reduce,
        "options": {} if reduction is None else reduction.options,
        "width": None if reduction is None else reduction.width,
        "of_captures": of_captures,
        "compares": compares,
        "carries": list(carries),
    }
    if ends is not None:
        options |= {"rows": ends[0], "columns": ends[1]}
    return {
        "inputs": inputs,
        "cache": cache,
        "steps": list(steps),
        "read": read_pass,
        "options": options,
        "stops": bool(model.head) or ends is None,
    }


def inputs_of(batch: Batch) -> Data:
    """The arguments of a forward pass over a batch."""
    return {**batch.inputs, "use_cache": False}


def replayed(model: ServedTransformer, rows: int, states: Tensor | str, read: object, options: Data) -> Data:
    """A pass of one token a row, in which given states replace the last layer's output.

    Args:
        rows: The number of states.
        states: The states (row, hidden), or the name under which an earlier pass carries them (row, 1, hidden).
        read: The function that reads the pass.
    """
    at = torch.arange(rows)
    entries: Data = {"rows": at, "columns": torch.zeros_like(at), "heads": None, "neurons": None, "heads_first": False}
    change: Data = {"op": "replace", "value": states}
    if isinstance(states, str):
        change = {"op": "take", "name": states, "index": (at, torch.zeros_like(at))}
    step: Data = {"edits": [entries | change], "branch": None, "needed": None, "heads_first": False, "captures": []}
    spot = spot_of(model, model.last_output)
    inputs = {"input_ids": torch.ones(rows, 1, dtype=torch.long), "use_cache": False}
    steps = [step | {"spot": spot}]
    return {"inputs": inputs, "cache": None, "steps": steps, "read": read, "options": options, "stops": False}
