"""Patchscopes on a served model: a row of the target prompt for each patch, and one without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.edits import Edit, Patched, StateEdit
from nnterp_mcp.engine.executors.ndif.backend import (
    Asked,
    batches_of,
    in_requests,
    logit_rows_at_once,
    next_pass,
    readout_of,
    replayed,
)
from nnterp_mcp.engine.executors.ndif.generation import generate_served
from nnterp_mcp.engine.executors.ndif.kernels import read_likeliest
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.traces import run_passes
from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.readouts.next_token import Categories, Readout
from nnterp_mcp.engine.token_spans import Reach
from nnterp_mcp.experiments.patchscope import LayerPair, PatchscopeReadings
from nnterp_mcp.experiments.target_prompts import Target
from nnterp_mcp.model.text.tokenization import EncodedPrompt


def read_served_patchscope(
    model: ServedTransformer,
    states: Float[Tensor, "source layer hidden"],
    source_layers: Sequence[int],
    target: Target,
    pairs: Sequence[LayerPair],
    *,
    top_k: int = 3,
    categories: Sequence[Sequence[Sequence[int]]] | None = None,
    max_new_tokens: int = 0,
    plan: Plan = NOTHING,
    batch_tokens: int = 4096,
    on_batch: Callable[[int], None] = lambda patches_done: None,
) -> PatchscopeReadings:
    """`patchscope.read_patchscope` on a served model.

    The first row is the target prompt without a patch; its distribution is read once for each source's categories.
    """
    count = len(states)
    patches = [(source, pair) for source in range(count) for pair in pairs]
    rows = [EncodedPrompt(index, "", list(target.ids), []) for index in range(len(patches) + count)]
    edits = [
        _put(index, target.position, layer, states[source, source_layers.index(origin)])
        for index, (source, (origin, layer)) in enumerate(patches)
    ]
    in_force = _on_rows(plan, target, len(rows))
    listed = {place: [*here] for place, here in in_force.edits.items()}
    for edit in edits:
        listed.setdefault(edit.place, []).append(edit)
    steering = Plan(listed, in_force.labels)
    sources = [source for source, _ in patches] + list(range(count))
    followed = Categories.of(categories or [[]] * count, model.device)
    batches = batches_of(model, rows, batch_tokens, logit_rows_at_once(model))
    passes: list[list[Data]] = []
    done: list[int] = []
    for batch in batches:
        own = torch.tensor([sources[prompt.index] for prompt in batch.prompts])
        passes.append([next_pass(model, batch, steering, Asked(top_k, followed[own]))])
        done.append((done[-1] if done else 0) + len(batch.prompts))
    found = in_requests(model, passes, lambda groups: on_batch(min(done[groups - 1], len(patches))))
    parts = [readout_of(one) for (one,) in found]
    order = [prompt.index for batch in batches for prompt in batch.prompts]
    whole = Readout.gather(parts, order, (len(rows),))
    fields = {name: getattr(whole, name) for name in Readout.__dataclass_fields__}
    said = _say(model, rows[: len(patches) + 1], steering, max_new_tokens, batch_tokens)
    return PatchscopeReadings(
        pairs=list(pairs),
        patched=Readout(**{name: v[: len(patches)].unflatten(0, (count, len(pairs))) for name, v in fields.items()}),
        continuations=[said[source * len(pairs) : (source + 1) * len(pairs)] for source in range(count)],
        unpatched=Readout(**{name: values[len(patches) :] for name, values in fields.items()}),
        unpatched_continuation=said[len(patches)],
    )


def likeliest_served_tokens(model: ServedTransformer, states: Float[Tensor, "state hidden"]) -> list[int]:
    """`lens.likeliest_tokens` on a served model."""
    found = run_passes(model.connection, [replayed(model, len(states), states, read_likeliest, {})])
    return found[-1]["tokens"].tolist()


def _put(row: int, position: int, layer: int, state: Float[Tensor, " hidden"]) -> Edit:
    """A row goes on with another state."""
    patched = Patched({row: state[None]}, {(row, position): 0})
    return StateEdit(Place("layers_output", layer), Reach({row: [position]}), patched)


def _on_rows(plan: Plan, target: Target, rows: int) -> Plan:
    """What is in force on the target prompt, on each of its rows."""
    edits = {place: [_spread(edit, target.index, rows) for edit in listed] for place, listed in plan.edits.items()}
    return Plan(edits, plan.labels)


def _spread(edit: Edit, prompt: int, rows: int) -> Edit:
    if not isinstance(edit, StateEdit) or prompt not in edit.reach.positions:
        return edit
    numbers = range(rows)
    reach = replace(edit.reach, positions=dict.fromkeys(numbers, edit.reach.positions[prompt]))
    change = edit.change
    if isinstance(change, Patched):
        index = {(row, at): place for (owner, at), place in change.index.items() if owner == prompt for row in numbers}
        change = replace(change, states=dict.fromkeys(numbers, change.states[prompt]), index=index)
    return replace(edit, reach=reach, change=change)


def _say(
    model: ServedTransformer, rows: Sequence[EncodedPrompt], plan: Plan, max_new_tokens: int, batch_tokens: int
) -> list[list[int]]:
    """The text after each row; the token that ended it is among it."""
    if not max_new_tokens:
        return [[] for _ in rows]
    said = generate_served(model, rows, plan, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens)
    return [generation.ids for generation in said]
