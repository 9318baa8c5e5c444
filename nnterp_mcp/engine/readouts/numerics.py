"""Numbers that mean nothing: a model that was pushed beyond what its type can hold is told of, and not read."""

from __future__ import annotations

from torch import Tensor

from nnterp_mcp.errors import InvalidRequest


def require_finite(numbers: Tensor, what: str) -> None:
    """Refuses what is infinite or not a number: reduced further, it would pass for a probability of 0.

    Args:
        numbers: A few numbers that are finite where all that they were made of is.
        what: What they were made of, in the plural.

    Raises:
        InvalidRequest: One of them is not finite.
    """
    if not numbers.isfinite().all():
        raise InvalidRequest(
            f"the model's {what} are not finite: somewhere its numbers grew beyond what their type holds.",
            "Use smaller factors in the interventions, or load the model with dtype float32.",
        )
