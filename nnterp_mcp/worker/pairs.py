"""From what a request says of corrupted runs to pairs of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnterp_mcp.experiments.patching.corruption import Pair, ablate, add_noise, pair_prompts, replace_text, resample
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.request.corruption import Ablated, Noise, Replaced
from nnterp_mcp.request.prompts import Prompt

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


def make_pairs(
    bench: Bench, clean: Sequence[Prompt], corrupted: Any, prompts: Sequence[EncodedPrompt]
) -> tuple[list[Pair], str]:
    """The pairs, and how the corrupted runs came about.

    Args:
        bench: The model and the limits.
        clean: The clean prompts.
        corrupted: A parsed `CorruptedField`.
        prompts: The clean prompts, encoded.

    Raises:
        InvalidRequest: A prompt or a position does not exist or fit.
        LimitExceeded: There are too many prompts.
    """
    if isinstance(corrupted, Noise):
        pairs = add_noise(bench.model, prompts, corrupted.positions, corrupted.noise, corrupted.samples)
        return pairs, f"noise of {corrupted.noise:g} standard deviations on embeddings"
    if isinstance(corrupted, Ablated):
        if corrupted.ablate == "resample":
            return resample(prompts), "another clean prompt"
        if corrupted.ablate == "zero":
            return ablate(prompts), "Zeros"
        over = f"the {len(prompts)} clean prompts" if corrupted.over is None else f"{len(corrupted.over)} other prompts"
        return ablate(prompts), f"Position-wise means over {over}"
    if isinstance(corrupted, Replaced):
        replaced = [replace_text(prompt, corrupted.replace, corrupted.by) for prompt in clean]
        return pair_prompts(prompts, bench.encode(replaced)), f"{corrupted.by!r} for {corrupted.replace!r}"
    return pair_prompts(prompts, bench.encode(corrupted)), "corrupted prompts"
