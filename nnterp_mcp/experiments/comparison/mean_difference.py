"""The mean difference of two models' activations: read by the lens and a patchscope, and steered into the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.branch_pass import AddedByEntry, Input
from nnterp_mcp.engine.edits import Added, StateEdit
from nnterp_mcp.engine.forward import Plan
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.observation import observe, reference_of
from nnterp_mcp.engine.token_spans import Reach
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.activations import read_states
from nnterp_mcp.experiments.comparison.exchange_grid import diverge
from nnterp_mcp.experiments.comparison.sides import ComparedModel
from nnterp_mcp.experiments.patched_target import SourceReadings, Target
from nnterp_mcp.experiments.patchscope import read_patchscope
from nnterp_mcp.experiments.steering_vectors import random_direction
from nnterp_mcp.experiments.target_prompts import encode_target, repeat_prompt
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt

TopTokens = list[tuple[int, float]]
"""Tokens with their probabilities, the largest first."""


def read_by_lens(
    model: StandardizedTransformer, differences: Float[Tensor, "row hidden"], top_k: int
) -> list[TopTokens]:
    """Reads each difference through the final norm and the head: the tokens that it promotes."""
    with torch.inference_mode():
        logits = model.project_on_vocab(differences.to(model.device, model.computing_dtype)).float()
    tops = logits.softmax(-1).topk(top_k, dim=-1)
    return [_listed(*row) for row in zip(tops.indices, tops.values, strict=True)]


def read_by_patchscope(
    model: StandardizedTransformer,
    differences: Float[Tensor, "row hidden"],
    layers: Sequence[int],
    top_k: int,
    batch_tokens: int,
) -> tuple[list[TopTokens], TopTokens]:
    """Reads each difference by what the model says of it in the repeat prompt, in place of the last token's state.

    Each is put in after its own layer, at the length of the state that it replaces.

    Args:
        model: The model.
        differences: The differences; none is zero.
        layers: The layer of each.
        top_k: Number of top tokens to return.
        batch_tokens: The most tokens of a pass.

    Returns:
        The top tokens after the prompt for each difference, and those without any.

    Source: Minder et al., "Narrow Finetuning Leaves Clearly Readable Traces in Activation Differences" (2025).
    """
    prompt = encode_target(model.tokenizer, repeat_prompt().prompt, model.name)
    target = Target(Workload([prompt], batch_tokens=batch_tokens), len(prompt.ids) - 1)
    into = sorted(set(layers))
    (replaced,) = read_states(model, target.work, [[target.position]], into).float().norm(dim=-1)
    lengths = torch.stack([replaced[into.index(layer)] for layer in layers]).cpu()
    states = differences * (lengths / differences.norm(dim=-1))[:, None]
    columns = list(range(len(layers)))
    sources = SourceReadings(states[None].to(model.device), columns)
    found = read_patchscope(model, sources, target, list(zip(columns, layers, strict=True)), top_k=top_k)
    patched = [_listed(*row) for row in zip(found.patched.top_ids[0], found.patched.top_probs[0], strict=True)]
    return patched, _listed(found.unpatched.top_ids[0], found.unpatched.top_probs[0])


def _listed(tokens: Tensor, probabilities: Tensor) -> TopTokens:
    return list(zip(tokens.tolist(), probabilities.tolist(), strict=True))


@dataclass(frozen=True)
class StrengthEffect:
    """A multiple of a direction, added to the base.

    Attributes:
        strength: The multiple.
        kl: KL(model ‖ steered base), in nats, as a mean over prompts.
        random: The same with random directions of equal length, as a mean over prompts and draws.
    """

    strength: float
    kl: float
    random: float


def steer_towards(
    base: ComparedModel,
    model: ComparedModel,
    prompts: Sequence[EncodedPrompt],
    place: Place,
    direction: Float[Tensor, " hidden"],
    strengths: Sequence[float],
    draws: int,
    work: Workload,
) -> tuple[float, list[StrengthEffect]]:
    """Adds multiples of a direction to the base at all positions, and compares what it predicts with the other model.

    Args:
        base: The model that is steered.
        model: The model whose predictions are the goal.
        prompts: The prompts; the prediction after the last token counts.
        place: Where the direction is added.
        direction: The direction.
        strengths: What it is multiplied by.
        draws: Random directions of equal length, each at all strengths.
        work: The size of batches.

    Returns:
        KL(model ‖ base) in nats as a mean over prompts, and the effect of each strength.
    """
    norm, width = float(direction.norm()), len(direction)
    every = [direction, *(random_direction(width, norm, seed).vectors[0] for seed in range(draws))]
    added = torch.stack([strength * one for strength in strengths for one in every])
    change = AddedByEntry(added, lambda row, position: row)
    plain, sums = 0.0, torch.zeros(len(added))
    for prompt in prompts:
        reference = reference_of(observe(model.model, Input(prompt, plan=model.plan), ()))
        edit = StateEdit(place, Reach(dict.fromkeys(range(len(added)), range(len(prompt.ids)))), change)
        apart, values = diverge(base, prompt, [edit], len(added), reference, work)
        plain, sums = plain + apart, sums + values
    means = (sums / len(prompts)).view(len(strengths), len(every))
    return plain / len(prompts), [
        StrengthEffect(strength, float(row[0]), float(row[1:].mean()))
        for strength, row in zip(strengths, means, strict=True)
    ]


def with_addition(
    side: ComparedModel, prompts: Sequence[EncodedPrompt], place: Place, vector: Float[Tensor, " hidden"]
) -> ComparedModel:
    """A model whose states get a vector besides its operations, at all tokens, generated ones included."""
    reach = Reach({prompt.index: range(len(prompt.ids)) for prompt in prompts}, goes_on=True)
    edit = StateEdit(place, reach, Added(vector, "the mean difference", place))
    edits = {at: [*listed] for at, listed in side.plan.edits.items()}
    edits.setdefault(place, []).append(edit)
    return ComparedModel(side.model, Plan(edits, side.plan.labels))
