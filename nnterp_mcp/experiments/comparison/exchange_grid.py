"""Patching across models: activations of one model in the place of another's, on the same prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.branches import Branches
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.observation import observe, reference_of
from nnterp_mcp.engine.readouts.metrics import reduce_to_metric
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.replacements import Replacement, replace_states
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt


def patch_across(
    source: StandardizedTransformer,
    target: StandardizedTransformer,
    prompt: EncodedPrompt,
    places: Sequence[Place],
    work: Workload,
) -> tuple[float, Float[Tensor, " place"]]:
    """Runs a prompt in one model with the activations that another has there, at all positions, one place at a time.

    Args:
        source: The model that activations are taken from.
        target: The model that runs.
        prompt: The prompt.
        places: The places.
        work: The size of batches.

    Returns:
        KL(source ‖ target) after the last token, in nats, and KL(source ‖ patched target) for each place.
    """
    given, positions = Input(prompt), range(len(prompt.ids))
    wanted = observe(source, given, places)
    reference, asked = reference_of(wanted), reduce_to_metric("kl", ())
    own = observe(target, given, (), reduction=asked, reference=reference)
    news = [Replacement(row, place, positions, wanted.states[place]) for row, place in enumerate(places)]
    apart = float(own.numbers["value"])
    values = torch.full((len(places),), apart)
    branches = Branches(
        target, given, replace_states(news), reduction=lambda order: asked, reference=reference, work=work
    )
    for batch in branches.run():
        require_finite(batch.numbers["total"], "logits")
        values[list(batch.rows)] = batch.numbers["value"][1:].float().cpu()
    return apart, values
