"""Target strings, and the tokens by which an answer would begin with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.formatting import elided, quoted
from nnterp_mcp.model.text.tokens import inner_ids, token_text
from nnterp_mcp.request.remarks import remark
from nnterp_mcp.request.selectors import SHARED_PAIRS
from nnterp_mcp.request.targets import Target, TokenId

_NAMED_CATEGORIES = 8
"""Categories whose tokens a remark lists."""

_MOST_COMPARED = 256
"""Strings that are compared with their first tokens."""

_NAMED_TOKENS = 6
"""Tokens of a category that a remark lists; up to so many of all categories together with their texts."""


def get_first_tokens(
    words: str | TokenId | Sequence[str | TokenId], llm_or_tokenizer: Any, use_hacky_implementation: bool = False
) -> list[int]:
    """The first token of each word, with and without a leading space.

    Which of the two a model uses depends on how the prompt ends, so both count as beginning the word. A word that
    begins with a space itself is taken as it is written. A word that splits into several tokens is represented by its
    first one only: words that share it cannot be told apart.

    Args:
        words: One string or several, or tokens by their ids.
        llm_or_tokenizer: A tokenizer, or a model that has one.
        use_hacky_implementation: Accepted for code written for nnterp; words are read in the middle of a text anyhow
            where the tokenizer puts a space before every text.

    Returns:
        Token ids, each once, in the order in which they were found.

    Raises:
        InvalidRequest: A word has no token, or a token does not exist.
    """
    tokenizer = getattr(llm_or_tokenizer, "tokenizer", llm_or_tokenizer)
    count = len(tokenizer) if tokenizer is llm_or_tokenizer else getattr(llm_or_tokenizer, "vocab_size", len(tokenizer))
    found: dict[int, None] = {}
    for word in [words] if isinstance(words, str | TokenId) else words:
        check_cancelled()
        tokens = [word.id] if isinstance(word, TokenId) else _known(word, _first_tokens(word, tokenizer), tokenizer)
        if not tokens:
            raise InvalidRequest(f"the target {word!r} has no token in this vocabulary", "Give it some visible text.")
        if max(tokens) >= count:
            asked = f"the target {word!r} begins with token" if isinstance(word, str) else "the target token"
            raise InvalidRequest(
                f"{asked} {max(tokens)}, which the model does not have: its tokens are 0 to {count - 1}."
            )
        found.update(dict.fromkeys(tokens))
    return list(found)


def _first_tokens(word: str, tokenizer: Any) -> list[int]:
    """The first token of a word as it is written, then with a space before it.

    The second counts only where it holds more than the space; of a blank word, which otherwise ends as it begins, only
    where it is the whole of it.
    """
    written = inner_ids(tokenizer, word)
    if word.startswith(" "):
        return written[:1]
    carrying = [token for token in written if _carries_text(token, tokenizer)]
    spaced = inner_ids(tokenizer, f" {word}")
    joined = spaced[:1] if word.strip() or len(spaced) == 1 else []
    return [*(carrying or written)[:1], *(token for token in joined if _carries_text(token, tokenizer))]


def _known(word: str, tokens: Sequence[int], tokenizer: Any) -> list[int]:
    """Tokens of a word without the one that stands for everything that a vocabulary lacks."""
    if word.strip() == getattr(tokenizer, "unk_token", None):
        return list(tokens)
    return [token for token in tokens if token != getattr(tokenizer, "unk_token_id", None)]


def _carries_text(token: int, tokenizer: Any) -> bool:
    """True for a token that is more than spaces."""
    return bool(tokenizer.decode([token]).strip(" "))


def find_shared_tokens(
    targets: Mapping[str, Sequence[int]], most: int | None = None
) -> dict[tuple[str, str], list[int]]:
    """The first tokens that two categories share: their probabilities count for both.

    Args:
        targets: Token ids by category.
        most: Pairs at most; all by default, and where all categories share a token, they are very many.

    Returns:
        The shared ids for each pair of categories that shares any.
    """
    return dict(islice(_sharing(targets), most))


def _sharing(targets: Mapping[str, Sequence[int]]) -> Iterator[tuple[tuple[str, str], list[int]]]:
    having: dict[int, list[str]] = {}
    for name, ids in targets.items():
        for token in set(ids):
            having.setdefault(token, []).append(name)
    places = {name: place for place, name in enumerate(targets)}
    for name, ids in targets.items():
        shared: dict[str, list[int]] = {}
        for token in sorted(set(ids)):
            check_cancelled()
            for other in having[token]:
                if places[other] > places[name]:
                    shared.setdefault(other, []).append(token)
        yield from (((name, other), shared[other]) for other in sorted(shared, key=places.__getitem__))


@dataclass(frozen=True)
class FollowedTargets:
    """Target categories as an experiment follows them.

    Attributes:
        ids: The first tokens of each category.
        words: The same as text.
        shared: The tokens, as text, that two categories share, under `a and b`.
    """

    ids: dict[str, list[int]]
    words: dict[str, list[str]]
    shared: dict[str, list[str]]


def follow_targets(targets: Mapping[str, Sequence[Target]], model: Any) -> FollowedTargets:
    """Finds the tokens that targets stand for by category, and says in a remark which they are.

    Args:
        targets: Strings and token ids by category.
        model: The model, or its tokenizer.

    Raises:
        InvalidRequest: A string has no token, or a token does not exist.
    """
    found = _follow(targets, model)
    name_counted([found.ids], [targets], getattr(model, "tokenizer", model))
    return found


def _follow(targets: Mapping[str, Sequence[Target]], model: Any) -> FollowedTargets:
    tokenizer = getattr(model, "tokenizer", model)
    ids = {name: get_first_tokens(words, model) for name, words in targets.items()}
    shared = {f"{a} and {b}": tokens for (a, b), tokens in find_shared_tokens(ids, SHARED_PAIRS).items()}
    return FollowedTargets(ids, _texts(ids, tokenizer), _texts(shared, tokenizer))


def follow_target_sets(
    targets: Sequence[Mapping[str, Sequence[Target]]], prompts: int, model: Any
) -> list[FollowedTargets]:
    """Does what `follow_targets` does for each prompt, of one mapping for all or one for each.

    Raises:
        InvalidRequest: There are neither one mapping nor as many as prompts, or a string has no token.
    """
    if len(targets) not in (1, prompts):
        raise InvalidRequest(
            f"{len(targets)} targets came for {prompts} prompt{'s' * (prompts != 1)}.",
            "Give one mapping for all, or one for each.",
        )
    found = [_follow(one, model) for one in targets]
    name_counted([one.ids for one in found], targets, getattr(model, "tokenizer", model))
    return found * prompts if len(found) == 1 else found


def name_counted(
    sets: Sequence[Mapping[str, Sequence[int]]], asked: Sequence[Mapping[str, Sequence[Target]]], tokenizer: Any
) -> None:
    """Says in remarks which tokens each category counts, and which strings have tokens that are only their beginning.

    Args:
        sets: The token ids of each category, for all prompts or for each; of sets that differ, the first is listed.
        asked: The strings that they come from.
    """
    first = dict(list(sets[0].items())[:_NAMED_CATEGORIES]) if sets else {}
    if not first:
        return
    short = sum(map(len, first.values())) > _NAMED_TOKENS
    listed = "; ".join(
        f"{quoted(elided(name))} {', '.join(_counted(token, short, tokenizer) for token in ids[:_NAMED_TOKENS])}"
        + (f" and {len(ids) - _NAMED_TOKENS} more" if len(ids) > _NAMED_TOKENS else "")
        for name, ids in first.items()
    )
    alike = all(one == sets[0] for one in sets)
    remark(f"Tokens counted{'' if alike else ' in prompt 0'}: {listed}.")
    _name_cut(asked, tokenizer)


def _name_cut(asked: Sequence[Mapping[str, Sequence[Target]]], tokenizer: Any) -> None:
    """Says in a remark which strings are only represented by their beginning."""
    words = (word for one in asked for listed in one.values() for word in listed if isinstance(word, str))
    cut: list[str] = []
    for word in islice(dict.fromkeys(words), _MOST_COMPARED):
        check_cancelled()
        tokens = [token_text(tokenizer, token) for token in _first_tokens(word, tokenizer)]
        if beginnings := [token for token in tokens if token.strip() != word.strip()]:
            cut.append(f"{quoted(elided(word))} by {' or '.join(map(quoted, map(elided, beginnings)))}")
    if cut:
        more = f"; and {len(cut) - _NAMED_TOKENS} more" if len(cut) > _NAMED_TOKENS else ""
        remark(
            f"Counted by the first token, with any other text that begins so: {'; '.join(cut[:_NAMED_TOKENS])}{more}."
        )


def _counted(token: int, short: bool, tokenizer: Any) -> str:
    return f"#{token}" if short else f"#{token} {quoted(elided(token_text(tokenizer, token)))}"


def _texts(ids: Mapping[str, Sequence[int]], tokenizer: Any) -> dict[str, list[str]]:
    return {name: [token_text(tokenizer, token) for token in tokens] for name, tokens in ids.items()}
