"""From hook points, plans and windows to the plain data that is sent with a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnterp_mcp.engine.branch_pass import BranchPass
from nnterp_mcp.engine.executors.ndif.refusals import not_offered
from nnterp_mcp.engine.forward import NOTHING, Capture, Plan, step_at
from nnterp_mcp.engine.hook_points import Place, in_order
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.readouts.reductions import take_rows
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.model.structure.anatomy import Site

if TYPE_CHECKING:
    from nnterp_mcp.engine.executors.ndif.model import ServedTransformer

_CPU = torch.device("cpu")


def steps_of(
    model: ServedTransformer,
    window: Window,
    plan: Plan = NOTHING,
    captures: Sequence[Capture] = (),
    end: tuple[Tensor, Tensor] | None = None,
) -> list[Data]:
    """The steps of a pass, in the order in which the model runs.

    Args:
        window: The columns that are computed.
        plan: The operations.
        captures: What is captured, under its number.
        end: Rows and columns at which logits are wanted: the states that the head makes them of are captured as `end`.

    Raises:
        InvalidRequest: A vector or a neuron does not fit.
        Unsupported: A hook point cannot be reached there; by name.
    """
    rows, columns = len(window.prompts), window.length - window.first

    def step(place: Place) -> Data:
        return step_at(place, _shape_at(model, place, rows, columns), _CPU, window, plan, captures)

    return _send(model, [*plan.edits, *plan.needs, *(capture.place for capture in captures)], step, end)


def branch_steps(
    model: ServedTransformer, branch: BranchPass, present: int, end: tuple[Tensor, Tensor] | None
) -> list[Data]:
    """The steps of a pass over an input and its branches.

    Args:
        branch: The pass.
        present: The number of rows from the start.
        end: Rows and columns at which logits are wanted.
    """

    def step(place: Place) -> Data:
        shape = _shape_at(model, place, branch.rows_at(place, present), branch.columns)
        return branch.step_at(place, shape, _CPU)

    return _send(model, branch.places, step, end)


def _send(
    model: ServedTransformer, places: Iterable[Place], step: Callable[[Place], Data], end: tuple[Tensor, Tensor] | None
) -> list[Data]:
    """The steps in order, each with its spot, and a capture of the states that the head reads, where it is direct."""
    ending = end is not None and bool(model.head)
    steps = {place: step(place) for place in in_order([*places, *([model.last_output] if ending else [])])}
    if end is not None and ending:
        steps[model.last_output]["captures"].append(("end", take_rows, {"rows": end[0], "columns": end[1]}))
    return [{"spot": spot_of(model, place), **found} for place, found in steps.items()]


def _shape_at(model: ServedTransformer, place: Place, rows: int, columns: int) -> list[int]:
    """The shape of the states at a hook point, as edits there have to know it."""
    if place.site != "heads_output" or place.layer is None:
        return [rows, columns, model.width_at(place)]
    return [rows, columns, model.anatomy.layers[place.layer].num_heads, model.width_at(place)]


def spot_of(model: ServedTransformer, place: Place) -> Data:
    """Where a place is."""
    if place.layer is None:
        return _output(model.anatomy.embed_tokens)
    facts = model.anatomy.layers[place.layer]
    if place.site == "layers_input":
        return {"path": facts.block.path, "side": "input", "item": facts.block.entry, "heads": 0}
    if place.site == "mlps_input" and facts.mlp is not None:
        return {"path": facts.mlp.path, "side": "input", "item": facts.mlp.entry, "heads": 0}
    if place.site == "neurons" and facts.mlp_projection is not None:
        return {"path": facts.mlp_projection.path, "side": "input", "item": facts.mlp_projection.entry, "heads": 0}
    if place.site == "heads_output" and facts.output_projection is not None:
        path, entry = facts.output_projection.path, facts.output_projection.entry
        return {"path": path, "side": "input", "item": entry, "heads": facts.num_heads}
    if place.site == "attention_probabilities":
        if facts.core is None or place.layer not in model.patterns:
            raise not_offered(model.name, f"attention of layer {place.layer}: its module does not return probabilities")
        return {"path": facts.core.path, "side": "output", "item": model.patterns[place.layer], "heads": 0}
    site = {
        "layers_output": facts.block,
        "attentions_raw_output": facts.attention_raw,
        "attentions_output": facts.attention_contribution,
        "mlps_raw_output": facts.mlp_raw,
        "mlps_output": facts.mlp_contribution,
    }.get(place.site)
    if site is None or site.factor != 1:
        raise not_offered(model.name, str(place))
    return _output(site)


def _output(site: Site) -> Data:
    return {"path": site.path, "side": "output", "item": site.exit, "heads": 0}
