"""The direction of the last residual stream along which a logit, or the difference of two, grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnterp_mcp.engine.executors.remote import executed_remotely
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.attribution.linearize import freeze_norm, offset, pull_back
from nnterp_mcp.model.standardized import StandardizedTransformer

Constant = Literal["final norm bias", "head bias", "token choice"]


@dataclass(frozen=True)
class LogitDirection:
    """A metric as a linear map of the last residual stream, everything else frozen as it is in the run; in float64.

    Attributes:
        stream: The direction: its product with the stream, and the constants, are the metric.
        constants: What is added after the stream; without those that are zero.
        metric: The metric as the model has it.
        rescaled: Whether something after the head changes the logits.
    """

    stream: Float[Tensor, "row hidden"]
    constants: dict[Constant, Float[Tensor, " row"]]
    metric: Float[Tensor, " row"]
    rescaled: bool


class TokenHead(nn.Module):
    """A head whose outputs are the logits of some tokens alone."""

    def __init__(self, head: nn.Module, tokens: Sequence[int]) -> None:
        super().__init__()
        self.head = head
        self.tokens = list(tokens)

    def forward(self, states: Float[Tensor, "*row hidden"]) -> Float[Tensor, "*row token"]:
        """The logits of the tokens."""
        return self.head(states)[..., self.tokens]


@executed_remotely
def find_final_modules(model: StandardizedTransformer, tokens: Sequence[int]) -> tuple[nn.Module | None, nn.Module]:
    """Returns the final norm, where the model has one, and the head for some tokens.

    Raises:
        Unsupported: The model has no linear head.
    """
    head, norm = model.anatomy.lm_head, model.anatomy.ln_final
    assert head is not None
    return None if norm is None else norm.module, TokenHead(head.module, tokens)


def find_direction(
    model: StandardizedTransformer,
    states: Float[Tensor, "row hidden"],
    logits: Float[Tensor, "row token"],
    tokens: Sequence[int],
    targets: Sequence[Sequence[Sequence[int]]],
) -> LogitDirection:
    """Freezes final norm, head and what comes after it, as they are for some states.

    Args:
        model: The model.
        states: The residual streams after the last layer.
        logits: What the model makes of them.
        tokens: The tokens of these logits.
        targets: Token ids for each row: of the answer, and of the alternative.

    Raises:
        InvalidRequest: There are no target tokens, or more than two categories.
        Unsupported: The model has no linear head, or several residual streams.
    """
    if model.anatomy.lm_head is None or model.anatomy.streams > 1 or model.anatomy.faults:
        raise Unsupported(f"{model.name} has no single residual stream that a linear head reads.")
    logits, column = logits.double(), {token: at for at, token in enumerate(tokens)}
    columns = [[[column[token] for token in category] for category in categories] for categories in targets]
    weights, choice = _weigh(logits, columns)
    norm, head = find_final_modules(model, tokens)
    metric = (weights * logits).sum(-1) + choice
    with model.standing_down(), torch.no_grad():
        frozen = None if norm is None else freeze_norm(norm, states)
        like = next(head.parameters(), states)
        normed = states if norm is None else norm(states.to(next(norm.parameters(), states))[:, None])[:, 0]
        raw = head(normed.to(like)[:, None])[:, 0].double()
        if not model.anatomy.head_is_direct:
            weights = weights * torch.where(raw == 0, 1, logits / raw)
        direction = pull_back(head, normed, weights)
        bias = (offset(head, normed[:1]) * weights).sum(-1)
    constants: dict[Constant, Tensor] = {
        "final norm bias": torch.zeros_like(bias) if frozen is None else (frozen.bias * direction).sum(-1),
        "head bias": bias,
        "token choice": choice,
    }
    kept: dict[Constant, Tensor] = {kind: amount for kind, amount in constants.items() if bool(amount.any())}
    stream = direction if frozen is None else frozen.pull(direction)
    return LogitDirection(stream, kept, metric, not model.anatomy.head_is_direct)


def _weigh(
    logits: Float[Tensor, "row token"], targets: Sequence[Sequence[Sequence[int]]]
) -> tuple[Float[Tensor, "row token"], Float[Tensor, " row"]]:
    """The weight of each logit in the metric, and the constant that is added to these.

    The log-sum-exp of a category's logits is their mean under their own probabilities plus the entropy of these.
    """
    weights = torch.zeros_like(logits)
    choice = torch.zeros_like(logits[:, 0])
    for row, categories in enumerate(targets):
        if not 1 <= len(categories) <= 2:
            raise InvalidRequest(
                f"direct logit attribution takes one or two target categories, and {len(categories)} came.",
                'Give targets such as {"answer": "Paris", "wrong": "Madrid"}, the answer first.',
            )
        for sign, tokens in zip((1, -1), categories, strict=False):
            shares = logits[row, list(tokens)].softmax(0)
            weights[row, list(tokens)] += sign * shares
            choice[row] -= sign * (shares * shares.log()).nan_to_num().sum()
    return weights, choice
