"""Which of the states of clean runs go to which positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nnterp_mcp.engine.edits import Patched
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.planning.clean_states import Gathered, Request
from nnterp_mcp.engine.token_spans import Reach
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.formatting import ranges
from nnterp_mcp.model.text.tokenization import EncodedPrompt


@dataclass(frozen=True)
class Destination:
    """The states that an operation changes.

    Attributes:
        place: Their hook point.
        reach: Their positions.
        prompts: The prompts that they belong to.
        heads: Their heads; None for all.
    """

    place: Place
    reach: Reach
    prompts: Sequence[EncodedPrompt]
    heads: Sequence[int] | None


def mean_by_position(requests: Sequence[Request], to: Destination) -> Callable[[Gathered], Patched]:
    """The mean of some states over prompts, position by position, for the positions of other prompts.

    Args:
        requests: The states of each prompt that is averaged.
        to: The states that the means replace.

    Raises:
        InvalidRequest: The prompts do not have as many positions.
    """
    counts, positions = {len(request.positions) for request in requests}, to.reach.positions
    odd = next((prompt.index for prompt in to.prompts if {len(positions[prompt.index])} != counts), None)
    if odd is not None:
        raise InvalidRequest(
            f"a mean position by position needs as many positions in each prompt: prompt {odd} has "
            f"{len(positions[odd])} of them, the prompts of over {ranges(sorted(counts))}.",
            "Name prompts of equal length or other positions; the op mean averages several together by over_positions.",
        )
    index = {(prompt.index, at): i for prompt in to.prompts for i, at in enumerate(positions[prompt.index])}

    def mean(gathered: Gathered) -> Patched:
        states = torch.stack([gathered[request].float() for request in requests]).mean(0)
        return Patched(dict.fromkeys((prompt.index for prompt in to.prompts), states), index, to.heads)

    return mean


def require_match(
    positions: Sequence[int], into: Sequence[int], prompt: EncodedPrompt, source: EncodedPrompt, place: Place
) -> None:
    """Refuses a patch whose states do not correspond to the positions that it reaches.

    Raises:
        InvalidRequest: They are neither one nor as many, or attention comes from a prompt of another length.
    """
    if len(positions) not in (1, len(into)):
        raise InvalidRequest(
            f"the patch takes {len(positions)} positions and puts {len(into)} into prompt {prompt.index}: "
            "take one, or as many as are put."
        )
    if place.site == "attention_probabilities" and len(source.ids) != len(prompt.ids):
        raise InvalidRequest(
            f"attention can be patched between prompts of equal length only: the source has {len(source.ids)} tokens, "
            f"prompt {prompt.index} has {len(prompt.ids)}."
        )
