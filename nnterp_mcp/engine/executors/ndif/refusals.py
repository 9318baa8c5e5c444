"""Everything that is refused of a model because NDIF serves it."""

from __future__ import annotations

from nnterp_mcp.errors import Unsupported

LOCALLY = "Load the model with backend 'local' for it, if it fits this machine."


def not_offered(model: str, subject: str) -> Unsupported:
    """The error for something that a served model does not offer.

    Args:
        model: The model's name.
        subject: The thing, in words that end a sentence: "gradients", "queries of layer 3".
    """
    return Unsupported(f"{model}, which NDIF serves, offers no {subject}", LOCALLY)
