"""Everything that is refused of a model because NDIF serves it."""

from __future__ import annotations

from nnterp_mcp.errors import Unsupported

LOCALLY = "Load the model with backend 'local' for it, if it fits this machine."
_NO_EDITS = {"attention_edit": "attention", "queries": "queries", "keys": "keys", "values": "values"}


def not_offered(model: str, subject: str) -> Unsupported:
    """The error for something that a served model does not offer.

    Args:
        model: The model's name.
        subject: The thing, in words that end a sentence: "gradients", "queries of layer 3".
    """
    return Unsupported(f"{model}, which NDIF serves, offers no {subject}", LOCALLY)


def lacking(model: str) -> dict[str, str]:
    """The capabilities that no served model has, with the reasons that `require` gives."""
    reasons = {
        name: f"{what} of {model} cannot be edited on NDIF: load it with backend 'local'"
        for name, what in _NO_EDITS.items()
    }
    weights = "the weights by which heads and neurons are told apart: attribute by sublayer or layer"
    others = {"weights": weights, "gradients": "gradients"}
    return reasons | {name: not_offered(model, subject).message for name, subject in others.items()}
