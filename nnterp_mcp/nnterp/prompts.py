"""Prompts with target strings, and the probabilities of their first tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from nnsight import TransformersModel
from torch import Tensor
from tqdm.auto import tqdm as tqdm_auto

from nnterp_mcp.engine.readouts.targets import find_shared_tokens, get_first_tokens
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.nnterp.activations import compute_next_token_probs

GetProbs = Callable[..., Float[Tensor, "prompt layer vocabulary"]]


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
        """True if no two categories share a token, except those in `ignore_targets`."""
        ignored = [ignore_targets] if isinstance(ignore_targets, str) else ignore_targets or ()
        kept = {name: tokens for name, tokens in self.target_tokens.items() if name not in ignored}
        return not find_shared_tokens(kept, 1)

    def get_target_probs(
        self, probs: Float[Tensor, "prompt layer vocabulary"], layer: int | None = None
    ) -> dict[str, Tensor]:
        """The summed probability of each category's tokens, (prompt, layer), or (prompt,) for one layer; on the CPU."""
        summed = {name: probs[:, :, tokens].sum(-1).cpu() for name, tokens in self.target_tokens.items()}
        return summed if layer is None else {name: values[:, layer] for name, values in summed.items()}

    def run(self, nn_model: TransformersModel, get_probs: GetProbs) -> dict[str, Tensor]:
        """Runs the prompt and returns its target probabilities, as `get_target_probs` does."""
        return self.get_target_probs(get_probs(nn_model, self.prompt))


def next_token_probs_unsqueeze(
    nn_model: TransformersModel, prompt: str | Sequence[str], remote: bool = False, **_: Any
) -> Float[Tensor, "prompt 1 vocabulary"]:
    """Next-token probabilities with a layer dimension of one, as `run_prompts` takes them."""
    return compute_next_token_probs(nn_model, prompt, remote=remote).unsqueeze(1)


@torch.no_grad()
def run_prompts(
    nn_model: TransformersModel,
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
