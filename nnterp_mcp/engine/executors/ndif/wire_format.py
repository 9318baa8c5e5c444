"""From hook points, plans and windows to the plain data that is sent with a trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nnterp_mcp.engine.branch_pass import BranchPass
from nnterp_mcp.engine.forward import NOTHING, Capture, Plan, step_at
from nnterp_mcp.engine.hook_points import Place, in_order
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.readouts.reductions import take_rows
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.structure.anatomy import Site

if TYPE_CHECKING:
    from nnterp_mcp.engine.executors.ndif.model import ServedTransformer

_LOCALLY = "Load the model with backend 'local' for it."
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Resolved:
    """An edit that is plain data already.

    Attributes:
        place: Where it acts.
        data: The data, of one pass.
        needs: Nothing.
    """

    place: Place
    data: Data
    needs: Sequence[Place] = ()

    def resolve(self, window: Window, shape: Sequence[int], device: torch.device) -> Data:
        """The data."""
        return self.data


def steps_of(
    model: ServedTransformer,
    window: Window,
    plan: Plan = NOTHING,
    captures: Sequence[Capture] = (),
    end: tuple[Tensor, Tensor] | None = None,
) -> list[Data]:
    """The steps of a pass, in the order in which the model runs.

    Args:
        model: The model.
        window: The columns that are computed.
        plan: The operations.
        captures: What is captured, under its number.
        end: Rows and columns at which logits are wanted: the states that the head makes them of are captured as `end`.

    Raises:
        InvalidRequest: A vector or a neuron does not fit.
        Unsupported: A hook point cannot be reached there; by name.
    """
    rows, columns = len(window.prompts), window.length - window.first
    places = in_order([*plan.edits, *plan.needs, *(capture.place for capture in captures)])
    steps = {
        place: step_at(place, _shape_at(model, place, rows, columns), _CPU, window, plan, captures)
        for place in with_end(model, places, end)
    }
    return send(model, steps, end)


def with_end(model: ServedTransformer, places: Sequence[Place], end: tuple[Tensor, Tensor] | None) -> list[Place]:
    """Hook points in order, with the one at which the head reads, where logits are wanted and the head is direct."""
    ending = end is not None and bool(model.head)
    return in_order([*places, *([Place("layers_output", model.anatomy.last.index)] if ending else [])])


def send(model: ServedTransformer, steps: Mapping[Place, Data], end: tuple[Tensor, Tensor] | None) -> list[Data]:
    """The steps with the spots where they are made, and with a capture of the states that the head reads."""
    last = Place("layers_output", model.anatomy.last.index)
    if end is not None and model.head:
        steps[last]["captures"].append(("end", take_rows, {"rows": end[0], "columns": end[1]}))
    return [{"spot": spot_of(model, place), **step} for place, step in steps.items()]


def branch_steps(
    model: ServedTransformer, branch: BranchPass, present: int, end: tuple[Tensor, Tensor] | None
) -> list[Data]:
    """The steps of a pass over an input and its branches.

    Args:
        model: The model.
        branch: The pass.
        present: How many rows are there from the start.
        end: Rows and columns at which logits are wanted.
    """
    steps: dict[Place, Data] = {}
    for place in with_end(model, branch.places, end):
        shape = _shape_at(model, place, branch.rows_at(place, present), branch.columns)
        steps[place] = branch.step_at(place, shape, _CPU)
    return send(model, steps, end)


def _shape_at(model: ServedTransformer, place: Place, rows: int, columns: int) -> list[int]:
    """The shape of the states at a hook point, as edits there have to know it."""
    if place.site != "heads_output" or place.layer is None:
        return [rows, columns, model.hidden_size]
    return [rows, columns, model.anatomy.layers[place.layer].num_heads, model.width_at(place)]


def spot_of(model: ServedTransformer, place: Place) -> Data:
    """Where a place is."""
    if place.layer is None:
        return _output(model.anatomy.embed_tokens)
    facts = model.anatomy.layers[place.layer]
    if place.site == "layers_input":
        return {"path": facts.block.path, "side": "input", "item": facts.block.entry, "heads": 0}
    if place.site == "heads_output" and facts.output_projection is not None:
        path, entry = facts.output_projection.path, facts.output_projection.entry
        return {"path": path, "side": "input", "item": entry, "heads": facts.num_heads}
    if place.site == "attention_probabilities":
        if facts.core is None or place.layer not in model.patterns:
            raise Unsupported(
                f"layer {place.layer} of {model.name} does not return its attention probabilities, so NDIF cannot read "
                "them",
                _LOCALLY,
            )
        return {"path": facts.core.path, "side": "output", "item": model.patterns[place.layer], "heads": 0}
    site = {
        "layers_output": facts.block,
        "attentions_raw_output": facts.attention_raw,
        "attentions_output": facts.attention_contribution,
        "mlps_raw_output": facts.mlp_raw,
        "mlps_output": facts.mlp_contribution,
    }.get(place.site)
    if site is None or site.factor != 1:
        raise Unsupported(f"the {place} of {model.name} cannot be reached on NDIF", _LOCALLY)
    return _output(site)


def _output(site: Site) -> Data:
    return {"path": site.path, "side": "output", "item": site.exit, "heads": 0}


def places_at(window: Window, wanted: Iterable[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Rows and columns of (row, position in the unpadded prompt) pairs."""
    pairs = [(row, window.padding[row] + at - window.first) for row, at in wanted]
    rows, columns = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    return rows, columns


def edit_entries(
    rows: Sequence[int], columns: Sequence[int], heads: Sequence[int] | None = None, **change: Any
) -> Data:
    """A resolved edit of some entries of states.

    Args:
        rows: The row of each entry.
        columns: Its column.
        heads: The heads; None for all.
        change: The `op`, with what it needs.
    """
    return {
        "rows": torch.tensor(rows, dtype=torch.long),
        "columns": torch.tensor(columns, dtype=torch.long),
        "heads": None if heads is None else torch.tensor(heads, dtype=torch.long),
        "neurons": None,
        "heads_first": False,
        **change,
    }
