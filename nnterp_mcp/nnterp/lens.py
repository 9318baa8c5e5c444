"""nnterp's logit lens: the whole distribution of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from jaxtyping import Float
from nnsight import TransformersModel
from torch import Tensor

from nnterp_mcp.model.loading.adoption import standardize
from nnterp_mcp.nnterp.activations import get_token_activations


@overload
def logit_lens(
    nn_model: TransformersModel,
    prompts: str | Sequence[str],
    remote: bool = False,
    return_inv_logits: Literal[False] = False,
) -> Float[Tensor, "prompt layer vocabulary"]: ...


@overload
def logit_lens(
    nn_model: TransformersModel,
    prompts: str | Sequence[str],
    remote: bool = False,
    *,
    return_inv_logits: Literal[True],
) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def logit_lens(
    nn_model: TransformersModel,
    prompts: str | Sequence[str],
    remote: bool = False,
    return_inv_logits: bool = False,
) -> Float[Tensor, "prompt layer vocabulary"] | tuple[Tensor, Tensor]:
    """The whole next-token distribution of every layer after each prompt, on the CPU.

    `read_lens` gives the numbers that are wanted of it without the memory that this takes.

    Args:
        nn_model: The model.
        prompts: One text or several.
        remote: Only False.
        return_inv_logits: Return the inverse lens too: the distribution of the negated logits, whose top tokens are
            those that a layer most strongly demotes.

    Raises:
        InvalidRequest: A prompt is empty.
        Unsupported: `remote` is set, or the model's lens is not exact.
    """
    model = standardize(nn_model)
    model.require("lens")
    states = get_token_activations(model, prompts, remote=remote).transpose(0, 1)
    logits = [model.project_on_vocab(rows).float() for rows in states]
    probs = torch.stack([rows.softmax(-1).cpu() for rows in logits])
    if not return_inv_logits:
        return probs
    return probs, torch.stack([(-rows).softmax(-1).cpu() for rows in logits])
