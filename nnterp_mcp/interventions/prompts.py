"""Prompts with target strings, and the tokens by which an answer would begin with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm as tqdm_auto

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.interventions.activations import compute_next_token_probs
from nnterp_mcp.model.prompts import token_text
from nnterp_mcp.model.standardized import StandardizedTransformer

GetProbs = Callable[..., Float[Tensor, "prompt layer vocabulary"]]


def get_first_tokens(words: str | Sequence[str], llm_or_tokenizer: Any) -> list[int]:
    """The first token of each word, with and without a leading space.

    Which of the two a model uses depends on how the prompt ends, so both count as beginning the word. A word that
    splits into several tokens is represented by its first one only: words that share it cannot be told apart.

    Args:
        words: One string or several.
        llm_or_tokenizer: A tokenizer, or a model that has one.

    Returns:
        Token ids, each once, in the order in which they were found.

    Raises:
        InvalidRequest: A word has no token.
    """
    tokenizer = getattr(llm_or_tokenizer, "tokenizer", llm_or_tokenizer)
    found: dict[int, None] = {}
    for word in [words] if isinstance(words, str) else words:
        check_cancelled()
        first = [_first_token(word, tokenizer), _first_token(f" {word}", tokenizer), _inner_token(word, tokenizer)]
        tokens = [token for token in first if token is not None]
        if not tokens:
            raise InvalidRequest(f"the target {word!r} has no token in this vocabulary", "Give it some visible text.")
        found.update(dict.fromkeys(tokens))
    return list(found)


def _first_token(text: str, tokenizer: Any) -> int | None:
    """The first token that carries text; a lone leading space (SentencePiece writes one) carries none."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    blank = not text.strip()
    return next((token for token in ids if blank or tokenizer.decode([token]).strip()), None)


def _inner_token(word: str, tokenizer: Any) -> int | None:
    """The first token of a word in the middle of a line, for tokenizers that put a space before every text."""
    first = _first_token(word, tokenizer)
    if first is None or not str(tokenizer.convert_ids_to_tokens(first)).startswith("▁"):
        return None
    before = tokenizer("\n", add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer(f"\n{word}", add_special_tokens=False, verbose=False)["input_ids"]
    return whole[len(before)] if whole[: len(before)] == before and len(whole) > len(before) else None


def find_shared_tokens(targets: Mapping[str, Sequence[int]]) -> dict[tuple[str, str], list[int]]:
    """The first tokens that two categories share: their probabilities count for both.

    Args:
        targets: Token ids by category.

    Returns:
        The shared ids for each pair of categories that shares any.
    """
    holders: dict[int, list[str]] = {}
    for name, ids in targets.items():
        for token in dict.fromkeys(ids):
            holders.setdefault(token, []).append(name)
    shared: dict[tuple[str, str], list[int]] = {}
    for token in sorted(token for token, names in holders.items() if len(names) > 1):
        for pair in combinations(holders[token], 2):
            check_cancelled()
            shared.setdefault(pair, []).append(token)
    order = {name: place for place, name in enumerate(targets)}
    return {pair: shared[pair] for pair in sorted(shared, key=lambda pair: (order[pair[0]], order[pair[1]]))}


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


def follow_targets(targets: Mapping[str, Sequence[str]], tokenizer: Any) -> FollowedTargets:
    """Finds the first tokens of target strings by category.

    Raises:
        InvalidRequest: A string has no token.
    """
    ids = {name: get_first_tokens(words, tokenizer) for name, words in targets.items()}
    shared = {f"{a} and {b}": tokens for (a, b), tokens in find_shared_tokens(ids).items()}
    return FollowedTargets(ids, _texts(ids, tokenizer), _texts(shared, tokenizer))


def follow_target_sets(
    targets: Sequence[Mapping[str, Sequence[str]]], prompts: int, tokenizer: Any
) -> list[FollowedTargets]:
    """Does what `follow_targets` does for each prompt, of one mapping for all or one for each.

    Raises:
        InvalidRequest: There are neither one mapping nor as many as prompts, or a string has no token.
    """
    given = list(targets) * prompts if len(targets) == 1 else targets
    if len(given) != prompts:
        raise InvalidRequest(
            f"{len(given)} targets came for {prompts} prompt{'s' * (prompts != 1)}.",
            "Give one mapping for all, or one for each.",
        )
    return [follow_targets(one, tokenizer) for one in given]


def _texts(ids: Mapping[str, Sequence[int]], tokenizer: Any) -> dict[str, list[str]]:
    return {name: [token_text(tokenizer, token) for token in tokens] for name, tokens in ids.items()}


@dataclass
class Prompt:
    """A prompt and the tokens to follow in its answer.

    Attributes:
        prompt: The text.
        target_tokens: Token ids by category.
        target_strings: The strings that they come from.
    """

    prompt: str
    target_tokens: dict[str, list[int]]
    target_strings: Mapping[str, str | Sequence[str]] | None = None

    @classmethod
    def from_strings(
        cls, prompt: str, target_strings: Mapping[str, str | Sequence[str]] | Sequence[str] | str, tokenizer: Any
    ) -> Prompt:
        """Finds the first tokens of target strings; strings without a category are called `target`.

        Raises:
            InvalidRequest: A string has no token.
        """
        named = target_strings if isinstance(target_strings, Mapping) else {"target": target_strings}
        return cls(prompt, {name: get_first_tokens(words, tokenizer) for name, words in named.items()}, named)

    def has_no_collisions(self, ignore_targets: str | Sequence[str] | None = None) -> bool:
        """Whether no two categories share a token, those in `ignore_targets` left aside."""
        ignored = [ignore_targets] if isinstance(ignore_targets, str) else ignore_targets or ()
        kept = {name: tokens for name, tokens in self.target_tokens.items() if name not in ignored}
        return not find_shared_tokens(kept)

    def get_target_probs(
        self, probs: Float[Tensor, "prompt layer vocabulary"], layer: int | None = None
    ) -> dict[str, Tensor]:
        """The summed probability of each category's tokens, (prompt, layer), or (prompt,) for one layer; on the CPU."""
        summed = {name: probs[:, :, tokens].sum(-1).cpu() for name, tokens in self.target_tokens.items()}
        return summed if layer is None else {name: values[:, layer] for name, values in summed.items()}

    def run(self, nn_model: StandardizedTransformer, get_probs: GetProbs) -> dict[str, Tensor]:
        """Runs the prompt and returns its target probabilities, as `get_target_probs` does."""
        return self.get_target_probs(get_probs(nn_model, self.prompt))


def next_token_probs_unsqueeze(
    nn_model: StandardizedTransformer, prompt: str | Sequence[str], remote: bool = False, **_: Any
) -> Float[Tensor, "prompt 1 vocabulary"]:
    """Next-token probabilities with a layer dimension of one, as `run_prompts` takes them."""
    return compute_next_token_probs(nn_model, prompt, remote=remote).unsqueeze(1)


@torch.no_grad()
def run_prompts(
    nn_model: StandardizedTransformer,
    prompts: Sequence[Prompt],
    batch_size: int = 32,
    get_probs_func: GetProbs | None = None,
    func_kwargs: Mapping[str, Any] | None = None,
    remote: bool = False,
    tqdm: Callable[..., Any] | None = tqdm_auto,
) -> dict[str, Float[Tensor, "prompt layer"]]:
    """The probabilities of each prompt's targets; prompts of like lengths share a batch.

    Args:
        nn_model: The model.
        prompts: Prompts with the same categories.
        batch_size: Prompts in a batch.
        get_probs_func: Gives (prompt, layer, vocabulary) for a list of texts, as `logit_lens` does; next-token
            probabilities by default.
        func_kwargs: Further arguments for it.
        remote: Passed to it.
        tqdm: Shows progress; None for none.

    Returns:
        For each category, summed probabilities (prompt, layer) on the CPU.

    Raises:
        InvalidRequest: The prompts' categories differ.
    """
    if not prompts:
        return {}
    names = list(prompts[0].target_tokens)
    for index, prompt in enumerate(prompts):
        if set(prompt.target_tokens) != set(names):
            raise InvalidRequest(
                f"prompt {index} has the targets {sorted(prompt.target_tokens)}: all must have {sorted(names)}."
            )
    read = get_probs_func or next_token_probs_unsqueeze
    order = _longest_first([prompt.prompt for prompt in prompts], nn_model.tokenizer)
    starts: Any = range(0, len(prompts), batch_size)
    results: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in tqdm(starts, desc="Running prompts") if tqdm else starts:
        batch = [prompts[index] for index in order[start : start + batch_size]]
        probs = read(nn_model, [prompt.prompt for prompt in batch], remote=remote, **(func_kwargs or {}))
        for row, prompt in zip(probs, batch, strict=True):
            for name, tokens in prompt.target_tokens.items():
                results[name].append(row[:, tokens].sum(-1))
    inverse = torch.tensor(order).argsort()
    return {name: torch.stack(rows).cpu()[inverse] for name, rows in results.items()}


def _longest_first(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """An order in which a batch pads little, and the batch that takes the most memory comes first."""
    lengths = [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
    return sorted(range(len(texts)), key=lambda index: -lengths[index])
