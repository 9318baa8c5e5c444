"""Target strings and the tokens by which an answer would begin with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from nnterp_mcp.errors import InvalidRequest


def get_first_tokens(words: str | Sequence[str], tokenizer: Any) -> list[int]:
    """The first token of each word, with and without a leading space.

    Which of the two a model uses depends on how the prompt ends, so both count as beginning the word. A word that
    splits into several tokens is represented by its first one only: words that share it cannot be told apart.

    Args:
        words: One string or several.
        tokenizer: The model's tokenizer.

    Returns:
        Token ids, each once, in the order in which they were found.

    Raises:
        InvalidRequest: A word has no token.
    """
    found: dict[int, None] = {}
    for word in [words] if isinstance(words, str) else words:
        first = [token for text in (word, f" {word}") if (token := _first_token(text, tokenizer)) is not None]
        if not first:
            raise InvalidRequest(f"the target {word!r} has no token in this vocabulary", "Give it some visible text.")
        found.update(dict.fromkeys(first))
    return list(found)


def _first_token(text: str, tokenizer: Any) -> int | None:
    """The first token that carries text; a lone leading space (SentencePiece writes one) carries none."""
    for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
        if tokenizer.decode([token]).strip():
            return token
        if text[:1].isspace() and text.strip() == "":
            return token
    return None


def find_shared_tokens(targets: Mapping[str, Sequence[int]]) -> dict[tuple[str, str], list[int]]:
    """The first tokens that two categories share: their probabilities count for both.

    Args:
        targets: Token ids by category.

    Returns:
        The shared ids for each pair of categories that shares any.
    """
    shared = {(a, b): sorted(set(targets[a]) & set(targets[b])) for a, b in combinations(targets, 2)}
    return {pair: ids for pair, ids in shared.items() if ids}
