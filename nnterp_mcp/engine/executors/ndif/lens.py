"""The logit lens on a served model: hidden states stay there, and so does what is as wide as the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nnterp_mcp.engine.executors.ndif.backend import batches_of, counted, in_requests, logit_rows_at_once, states_pass
from nnterp_mcp.engine.executors.ndif.kernels import Data, read_lens, read_replayed_lens
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.wire_format import Way, take_edit
from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.next_token import Categories, Readout
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.experiments.logit_lens import LensReadings
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt


def read_served_lens(
    model: ServedTransformer,
    prompts: Sequence[EncodedPrompt],
    positions: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    top_k: int = 3,
    categories: Sequence[Sequence[Sequence[int]]] | None = None,
    inverse: bool = False,
    plan: Plan = NOTHING,
    batch_tokens: int = 4096,
    on_batch: Callable[[int], None] = lambda prompts_done: None,
) -> LensReadings:
    """`lens.read_lens` on a served model: what comes back is what the readings hold."""
    model.require("lens")
    asked = {prompt.index: at for prompt, at in zip(prompts, positions, strict=True)}
    place = {prompt.index: row for row, prompt in enumerate(prompts)}
    followed = Categories.of(categories or [[]] * len(prompts), model.device)
    last = model.num_layers - 1
    read = [*layers] if layers[-1] == last else [*layers, last]
    batches = batches_of(model, prompts, batch_tokens)
    passes: list[list[Data]] = []
    keys: list[tuple[int, int]] = []
    for batch in batches:
        places = [(row, at) for row, prompt in enumerate(batch.prompts) for at in asked[prompt.index]]
        keys += [(batch.prompts[row].index, at) for row, at in places]
        chosen = followed[torch.tensor([place[batch.prompts[row].index] for row, _ in places], dtype=torch.long)]
        options = {"top_k": top_k, "ids": chosen.ids, "real": chosen.real, "count": len(layers), "inverse": inverse}
        passes.append(_passes(model, batch, places, read, plan, options))
    done = list(counted(batches))
    found = [group[-1] for group in in_requests(model, passes, lambda groups: on_batch(done[groups - 1]))]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    whole = {name: torch.cat([one[name] for one in found])[order] for name in found[0]}
    require_finite(whole["kl"], "logits")
    return LensReadings(
        prompts=[keys[index][0] for index in order],
        positions=[keys[index][1] for index in order],
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
