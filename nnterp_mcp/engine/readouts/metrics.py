"""One number for what a model says next, by which interventions are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.forward import LogitReduction
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.readouts.reductions import log_probabilities, measure, measure_rows
from nnterp_mcp.errors import InvalidRequest

MetricName = Literal["logit_difference", "log_probability", "kl"]
Metric = Callable[[Float[Tensor, "row vocabulary"]], Float[Tensor, " row"]]
"""Measures distributions, given as logits."""


def default_metric(categories: int) -> MetricName:
    """The default metric: logit difference of two categories, log-probability of one, divergence with none."""
    return "kl" if categories == 0 else "log_probability" if categories == 1 else "logit_difference"


def make_metric(
    name: MetricName, targets: Sequence[Sequence[int]], clean: Float[Tensor, " vocabulary"] | None = None
) -> Metric:
    """A metric for the distributions after one pair of prompts.

    - `logit_difference`: the answer's logit less the wrong answer's. Several tokens in a category count as one with
      their summed probability, so it is log p(answer) − log p(wrong answer). It is linear in the last residual stream
      up to the final norm, and blind to what else becomes likely.
    - `log_probability`: the answer's, in nats. It saturates near 0, and falls with anything that becomes likely.
    - `kl`: KL(clean ‖ patched) of the whole next-token distribution, in nats; 0 is the clean run.

    Args:
        name: Which one.
        targets: Token ids: of the answer, then of the wrong answer.
        clean: The logits of the clean run; needed by `kl` alone.

    Raises:
        InvalidRequest: The metric needs more categories than there are.

    Source: Heimersheim and Nanda, "How to use and interpret activation patching" (2024).
    """
    _require_categories(name, targets)
    reference = None if name != "kl" or clean is None else log_probabilities(clean)

    def metric(logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, " row"]:
        measured = measure(logits, name, targets, reference)
        require_finite(measured, "logits")
        return measured

    return metric


def reduce_to_metric(name: MetricName, targets: Sequence[Sequence[int]]) -> LogitReduction:
    """The same as a reduction next to the model; the clean run is the reference that goes with it.

    Raises:
        InvalidRequest: The metric needs more categories than there are.
    """
    _require_categories(name, targets)
    options = {"metric": name, "targets": [list(tokens) for tokens in targets], "reference": None}
    return LogitReduction(measure_rows, options)


def _require_categories(name: MetricName, targets: Sequence[Sequence[int]]) -> None:
    needed = {"logit_difference": 2, "log_probability": 1, "kl": 0}[name]
    if len(targets) < needed:
        raise InvalidRequest(
            f"the metric {name} needs {needed} target categor{'y' if needed == 1 else 'ies'}, and {len(targets)} came.",
            'Give targets such as {"answer": "Paris", "wrong": "Madrid"}, the answer first.',
        )
