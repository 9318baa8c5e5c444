"""The padding token: any that the model embeds will do, since it is masked."""

from __future__ import annotations

from typing import Any

from torch import nn


def embedded_ids(model: nn.Module) -> int | None:
    """How many token ids a model embeds; None where it has no table of them."""
    weight = getattr(model.get_input_embeddings(), "weight", None)  # pyright: ignore[reportCallIssue]
    return None if weight is None else int(weight.shape[0])


def fill_padding(tokenizer: Any, embedded: int | None) -> None:
    """Gives a tokenizer a padding token that the model embeds, where its own is missing or is not embedded.

    Args:
        tokenizer: The tokenizer; it is changed.
        embedded: How many token ids the model embeds, if that is known.
    """
    most = len(tokenizer) if embedded is None else embedded
    if tokenizer.pad_token_id is not None and 0 <= tokenizer.pad_token_id < most:
        return
    others = [tokenizer.eos_token, *map(tokenizer.convert_ids_to_tokens, range(min(most, len(tokenizer))))]
    ids = [(tokenizer.convert_tokens_to_ids(token), token) for token in others if token is not None]
    tokenizer.pad_token = next((token for index, token in ids if index is not None and 0 <= index < most), None)
