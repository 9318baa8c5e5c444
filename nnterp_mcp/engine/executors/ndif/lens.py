"""The logit lens on a served model: hidden states stay there, and so does what is as wide as the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnterp_mcp.engine.executors.ndif.backend import logit_rows_at_once, run_served, split_rows, states_pass
from nnterp_mcp.engine.executors.ndif.kernels import Data, read_lens, read_replayed_lens
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.wire_format import Way, take_edit
from nnterp_mcp.engine.forward import Plan
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.next_token import Categories, Readout
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.logit_lens import LensReadings
from nnterp_mcp.model.text.tokenization import Batch


def read_served_lens(
    model: ServedTransformer,
    work: Workload,
    positions: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    top_k: int = 3,
    categories: Sequence[Sequence[Sequence[int]]] | None = None,
    inverse: bool = False,
) -> LensReadings:
    """`logit_lens.read_lens` on a served model: what comes back is what the readings hold."""
    model.require("lens")
    followed = Categories.of(categories or [[]] * len(positions), model.device)
    last = model.num_layers - 1
    read = [*layers] if layers[-1] == last else [*layers, last]

    def make(batch: Batch, numbers: Sequence[int]) -> list[Data]:
        places = [(row, at) for row, number in enumerate(numbers) for at in positions[number]]
        chosen = followed[torch.tensor([numbers[row] for row, _ in places], dtype=torch.long)]
        options = {"top_k": top_k, "ids": chosen.ids, "real": chosen.real, "count": len(layers), "inverse": inverse}
        return _passes(model, batch, places, read, work.plan, options)

    def split(found: Data, numbers: Sequence[int]) -> list[Data]:
        return split_rows(found, [len(positions[number]) for number in numbers])

    found = run_served(model, work, make, split)
    whole = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    require_finite(whole["kl"], "logits")
    return LensReadings(
        prompts=[prompt.index for prompt, here in zip(work.prompts, positions, strict=True) for _ in here],
        positions=[at for here in positions for at in here],
        layers=list(layers),
        readout=Readout(**{name: value for name, value in whole.items() if name != "kl"}),
        kl=whole["kl"],
    )


def _passes(
    model: ServedTransformer,
    batch: Batch,
    places: Sequence[tuple[int, int]],
    layers: Sequence[int],
    plan: Plan,
    options: Data,
) -> list[Data]:
    """The pass that reads a batch; and where more than norm and head lies behind the last layer, one through that."""
    way, names, inputs = states_pass(model, batch, places, layers, plan)
    size = max(1, logit_rows_at_once(model) // len(layers))
    options = options | {"names": names, "head": model.head, "readings_at_once": size}
    first = {"inputs": inputs, "steps": way.steps(), "read": read_lens, "options": options}
    if model.head:
        return [first]
    return [first, replayed(model, len(places) * len(layers), "states", read_replayed_lens, options)]


def replayed(model: ServedTransformer, rows: int, states: Tensor | str, read: object, options: Data) -> Data:
    """A pass of one token a row, in which given states stand for what the last layer made.

    Args:
        model: The model.
        rows: How many states there are.
        states: The states (row, hidden), or the name under which an earlier pass carries them (row, 1, hidden).
        read: What is read of the pass.
        options: What that is told.
    """
    way = Way(model)
    numbers = list(range(rows))
    if isinstance(states, str):
        edit = take_edit(numbers, [0] * rows, states, (torch.arange(rows), 0), None)
    else:
        edit = take_edit(numbers, [0] * rows, "", None, None) | {"op": "put", "value": states}
    way.edit(Place("layers_output", model.anatomy.last.index), edit)
    inputs = {"input_ids": torch.ones(rows, 1, dtype=torch.long), "use_cache": False}
    return {"inputs": inputs, "steps": way.steps(), "read": read, "options": options}
