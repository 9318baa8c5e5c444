"""One of two models that are compared, and the positions at which both have read the same text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt


@dataclass(frozen=True)
class ComparedModel:
    """A model with the operations that act in it.

    Attributes:
        model: The model.
        plan: The operations, planned for this model and its tokens.
    """

    model: StandardizedTransformer
    plan: Plan = NOTHING


@dataclass(frozen=True)
class AlignedPrompt:
    """A prompt as two models read it.

    Attributes:
        base: The tokens of the base.
        model: The tokens of the other model.
        pairs: Positions in the base and in the model that end at the same character, in ascending order.
    """

    base: EncodedPrompt
    model: EncodedPrompt
    pairs: Sequence[tuple[int, int]]

    @property
    def same(self) -> bool:
        """True if both read the same tokens, so that every position has its counterpart."""
        return self.base.ids == self.model.ids

    @property
    def ends(self) -> list[int] | None:
        """The number of characters before the end of each pair; None where the texts or tokens have no characters."""
        if self.base.text != self.model.text or not (self.base.spans and self.model.spans):
            return None
        return [self.model.spans[at][1] for _, at in self.pairs[:-1]] + [len(self.model.text)]


def align_by_text(base: EncodedPrompt, model: EncodedPrompt) -> AlignedPrompt:
    """Finds the positions after which two models have read the same text.

    A token's last character counts, so that it does not matter where a vocabulary puts spaces. The last positions
    always correspond: both models have read all. They alone do where chat templates write other texts, or a tokenizer
    does not say which characters its tokens have.
    """
    if base.ids == model.ids:
        return AlignedPrompt(base, model, [(at, at) for at in range(len(model.ids))])
    ends = [{end: at for at, (start, end) in enumerate(one.spans[:-1]) if end > start} for one in (base, model)]
    shared = sorted(ends[0].keys() & ends[1].keys()) if base.text == model.text else []
    last = (len(base.ids) - 1, len(model.ids) - 1)
    return AlignedPrompt(base, model, [*((ends[0][end], ends[1][end]) for end in shared), last])


def share_vocabulary(base: StandardizedTransformer, model: StandardizedTransformer) -> bool:
    """True if two models have the same tokens under the same ids; special ones may have been renamed."""
    if base.vocab_size != model.vocab_size:
        return False
    if base.tokenizer is model.tokenizer:
        return True
    return _plain_tokens(base) == _plain_tokens(model)


def _plain_tokens(model: StandardizedTransformer) -> dict[str, int]:
    tokenizer: Any = model.tokenizer
    added = tokenizer.get_added_vocab()
    return {token: at for token, at in tokenizer.get_vocab().items() if token not in added and at < model.vocab_size}


def batches_of(base: ComparedModel, prompts: Sequence[AlignedPrompt], work: Workload) -> Workload:
    """The prompts as the model reads them, in batches that the base can run too."""
    alone = not (base.model.can("batch") and all(prompt.same for prompt in prompts))
    size = 1 if alone else work.batch_size
    return Workload([prompt.model for prompt in prompts], NOTHING, work.batch_tokens, work.progress, size)


def base_batch(base: ComparedModel, prompts: Sequence[AlignedPrompt], numbers: Sequence[int]) -> Batch:
    """Some of the prompts as the base reads them, in one batch."""
    return Workload([prompt.base for prompt in prompts]).batch(base.model, numbers)
