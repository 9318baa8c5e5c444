"""Names the token that dominates a mean over tokens, for the tools that average states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.contract import DominantToken
from nnterp_mcp.engine.readouts.dominance import find_dominant
from nnterp_mcp.experiments.steering_vectors import MeanStates
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.prompts import Prompt

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

AveragedToken = tuple[str, int, int | None]
"""The group, the prompt's index in it and the position of a state; None for a mean over several."""


def name_dominant(
    bench: Bench,
    norms: Float[Tensor, "state layer"],
    tokens: Sequence[AveragedToken],
    layers: Sequence[int | None],
    prompts: Mapping[str, Sequence[Prompt]],
) -> DominantToken | None:
    """Names the token whose state dominates the mean over some states; None where there is none.

    Args:
        bench: The model.
        norms: The norms of the states that are averaged.
        tokens: Where each of them is.
        layers: The layers.
        prompts: The prompts by group.
    """
    found = find_dominant(norms)
    group, prompt, position = tokens[found.state] if found is not None else ("", 0, None)
    if found is None or position is None:
        return None
    (encoded,) = bench.encode([prompts[group][prompt]])
    return DominantToken(
        token=token_text(bench.model.tokenizer, encoded.ids[position]),
        position=position,
        prompt=prompt,
        group=group,
        layer=layers[found.layer],
        ratio=found.ratio,
    )


def dominant_in_means(
    bench: Bench, sets: Mapping[str, MeanStates], prompts: Mapping[str, Sequence[Prompt]]
) -> DominantToken | None:
    """Names the token whose state dominates the means of some sets of prompts."""
    tokens = [
        (group, prompt, at)
        for group, states in sets.items()
        for prompt, positions in enumerate(states.positions)
        for at in positions
    ]
    norms = torch.cat([norms for states in sets.values() for norms in states.norms])
    layers = next(iter(sets.values())).layers
    return name_dominant(bench, norms, tokens, layers, prompts)
