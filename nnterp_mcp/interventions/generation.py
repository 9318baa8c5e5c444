"""Generating text with operations in force at every step.

Each step is a forward pass like any other (`engine.run`) over the newest token, on cached keys and values. Where a
model's cache is not the one that transformers gives to all models, the whole sequence is computed again at each step:
slower, and the same text.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from nnterp_mcp.interventions.batches import run_batches
from nnterp_mcp.interventions.elsewhere import runs_elsewhere
from nnterp_mcp.interventions.engine import NOTHING, Plan, attention_for, run
from nnterp_mcp.interventions.sampling import GREEDY, Sampling, choose
from nnterp_mcp.interventions.windows import Window
from nnterp_mcp.model.check import TOLERANCES
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.probe import probe_ids
from nnterp_mcp.model.prompts import Batch, EncodedPrompt
from nnterp_mcp.model.standardized import StandardizedTransformer


@dataclass(frozen=True)
class Generation:
    """What was generated after one prompt.

    Attributes:
        prompt: The prompt's index.
        ids: The new tokens; the one that ended the text is among them.
        log_probs: Their log-probabilities in nats under the model with the operations in force, before temperature
            and truncation.
        ended: Whether the text ended by itself, with a token that means the end.
    """

    prompt: int
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    ended: bool = False


@runs_elsewhere
def generate(
    model: StandardizedTransformer,
    prompts: Sequence[EncodedPrompt],
    plan: Plan = NOTHING,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    batch_tokens: int = 4096,
    on_token: Callable[[int], None] = lambda tokens_done: None,
    should_stop: Callable[[], None] = lambda: None,
) -> list[Generation]:
    """Generates text after each prompt, with operations in force.

    Operations on positions of the prompt act while the prompt is read, and through the cache on everything after it;
    those on `all`, on `last` and on ranges without an end act on every new token too; steps are as they say.

    Args:
        model: The model.
        prompts: The prompts.
        plan: The operations, planned for these prompts.
        max_new_tokens: How many tokens to generate at most.
        sampling: How to choose them.
        batch_tokens: Tokens in a batch, padding and new ones included.
        on_token: Called after each step with the number of steps done, over all batches.
        should_stop: Called before each step; what it raises ends the generation and leaves nothing behind.

    Returns:
        One entry for each prompt, in their order.

    Raises:
        InvalidRequest: A vector or a neuron does not fit the states at its place.
        Unsupported: The model does not have one of the places.
    """
    found: dict[int, Generation] = {}
    done = 0
    room = max(1, batch_tokens - max_new_tokens)

    def say(batch: Batch) -> list[Generation]:
        nonlocal done
        loop = _Loop(model, batch, plan, sampling)
        for _ in range(max_new_tokens):
            should_stop()
            loop.step()
            done += 1
            on_token(done)
            if loop.ended:
                break
        return loop.generations

    with torch.inference_mode(), attention_for(model, plan):
        for _, said in run_batches(model, prompts, room, say):
            found |= {generation.prompt: generation for generation in said}
    return [found[prompt.index] for prompt in prompts]


class _Loop:
    """The steps of one batch."""

    def __init__(self, model: StandardizedTransformer, batch: Batch, plan: Plan, sampling: Sampling) -> None:
        self.generations = [Generation(prompt.index) for prompt in batch.prompts]
        self._model = model
        self._batch = batch
        self._plan = plan
        self._sampling = sampling
        self._dice = [sampling.dice(prompt.index) for prompt in batch.prompts]
        self._ends = end_ids(model)
        self._ids = batch.inputs["input_ids"]
        self._mask = batch.inputs["attention_mask"]
        self._cache = DynamicCache(config=model.module.config) if caches(model) else None
        self._known = 0

    @property
    def ended(self) -> bool:
        """Whether every row has ended."""
        return all(generation.ended for generation in self.generations)

    def step(self) -> None:
        """Computes the next token of every row."""
        tokens, log_probs = choose(self._next_logits(), self._sampling, self._dice)
        for row, (generation, token, log_prob) in enumerate(
            zip(self.generations, tokens.tolist(), log_probs.tolist(), strict=True)
        ):
            if not generation.ended:
                generation.ids.append(token)
                generation.log_probs.append(log_prob)
                self.generations[row] = Generation(
                    generation.prompt, generation.ids, generation.log_probs, token in self._ends
                )
        self._ids = torch.cat([self._ids, tokens[:, None].to(self._ids)], dim=1)
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)

    def _next_logits(self) -> Float[Tensor, "row vocabulary"]:
        length = self._ids.shape[1]
        first = self._known if self._cache is not None else 0
        window = Window(self._batch.prompts, self._batch.padding, first, length)
        inputs = model_inputs(self._model.module, self._ids[:, first:], self._mask, self._cache)
        rows = torch.arange(self._ids.shape[0], device=self._ids.device)
        last = torch.full_like(rows, length - first - 1)
        self._known = length
        logits = run(self._model, inputs, window, self._plan, (), (rows, last)).logits
        assert logits is not None
        return logits


def model_inputs(
    module: nn.Module, ids: Int[Tensor, "row new"], mask: Int[Tensor, "row column"], cache: DynamicCache | None
) -> dict[str, Any]:
    """The arguments of a forward pass over the newest tokens.

    Args:
        module: The Hugging Face model.
        ids: The tokens to compute.
        mask: The mask over all columns so far.
        cache: Keys and values of the columns before; None when `ids` are all there is.
    """
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": cache is not None}
    if "position_ids" in inspect.signature(module.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    if cache is not None:
        inputs["past_key_values"] = cache
    return inputs


def end_ids(model: StandardizedTransformer) -> frozenset[int]:
    """The tokens that end a text: those that the model's generation config lists, and the tokenizer's own."""
    config = getattr(model.module, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    ids = [*(listed if isinstance(listed, list | tuple) else [listed]), getattr(model.tokenizer, "eos_token_id", None)]
    return frozenset(int(token) for token in ids if token is not None)


def until_end(tokens: Sequence[int], ends: Collection[int]) -> list[int]:
    """The tokens up to the first that ends the text, which is among them."""
    return list(tokens[: next((at + 1 for at, token in enumerate(tokens) if token in ends), len(tokens))])


_CACHES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def caches(model: StandardizedTransformer) -> bool:
    """Whether a step on cached keys and values gives what the whole sequence gives; tried once for each model."""
    module = model.module
    if module not in _CACHES:
        with torch.inference_mode(), model.standing_down():
            _CACHES[module] = _try_cache(module)
    return _CACHES[module]


def _try_cache(module: nn.Module) -> bool:
    ids = probe_ids(module)
    mask = torch.ones_like(ids)
    try:
        whole = module(**model_inputs(module, ids, mask, None)).logits[:, -1].float()
        cache = DynamicCache(config=module.config)  # pyright: ignore[reportArgumentType]
        module(**model_inputs(module, ids[:, :-1], mask[:, :-1], cache))
        stepped = module(**model_inputs(module, ids[:, -1:], mask, cache)).logits[:, -1].float()
    except Exception as error:  # whatever else the modelling code raises, it does not take such a cache
        if says_nothing(error):
            raise
        return False
    allowed = TOLERANCES.get(next(module.parameters()).dtype, 1e-1) * max(float(whole.abs().max()), 1.0)
    return bool((whole - stepped).abs().max() <= allowed)
