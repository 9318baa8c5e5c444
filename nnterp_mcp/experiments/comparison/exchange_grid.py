"""Patching across models: activations of one model in the place of another's, on the same prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.branches import Branches
from nnterp_mcp.engine.edits import StateEdit
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.observation import Reference, observe, reference_of
from nnterp_mcp.engine.readouts.metrics import reduce_to_metric
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.replacements import Replacement, replace_states
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.comparison.sides import ComparedModel
from nnterp_mcp.model.text.tokenization import EncodedPrompt


def patch_across(
    source: ComparedModel,
    target: ComparedModel,
    prompt: EncodedPrompt,
    places: Sequence[Place],
    work: Workload,
    towards: ComparedModel | None = None,
) -> tuple[float, Float[Tensor, " place"]]:
    """Runs a prompt in one model with the activations that another has there, at all positions, one place at a time.

    The operations of each model act in its own run; the activations replace what those of the target leave.

    Args:
        source: The model that activations are taken from.
        target: The model that runs.
        prompt: The prompt.
        places: The places.
        work: The size of batches.
        towards: The model whose predictions are compared with; the source by default.

    Returns:
        KL(towards ‖ target) after the last token, in nats, and KL(towards ‖ patched target) for each place.
    """
    wanted = observe(source.model, Input(prompt, plan=source.plan), places)
    goal = wanted if towards is None else observe(towards.model, Input(prompt, plan=towards.plan), ())
    positions = range(len(prompt.ids))
    news = [Replacement(row, place, positions, wanted.states[place]) for row, place in enumerate(places)]
    return diverge(target, prompt, replace_states(news), len(places), reference_of(goal), work)


def diverge(
    target: ComparedModel,
    prompt: EncodedPrompt,
    edits: Sequence[StateEdit],
    rows: int,
    reference: Reference,
    work: Workload,
) -> tuple[float, Float[Tensor, " row"]]:
    """Runs a prompt with edits of several rows.

    Args:
        target: The model that runs.
        prompt: The prompt.
        edits: The edits; their reaches name rows.
        rows: How many rows there are.
        reference: The run that is compared with.
        work: The size of batches.

    Returns:
        KL(reference ‖ target) after the last token without the edits, in nats, and that of each row.
    """
    given, asked = Input(prompt, plan=target.plan), reduce_to_metric("kl", ())
    own = observe(target.model, given, (), reduction=asked, reference=reference)
    apart = float(own.numbers["value"])
    values = torch.full((rows,), apart)
    branches = Branches(target.model, given, edits, reduction=lambda order: asked, reference=reference, work=work)
    for batch in branches.run():
        require_finite(batch.numbers["total"], "logits")
        values[list(batch.rows)] = batch.numbers["value"][1:].float().cpu()
    return apart, values
