"""The predictions of two models after the same texts: over one vocabulary, or over what two have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnterp_mcp.engine.forward import forward
from nnterp_mcp.engine.generation import end_ids
from nnterp_mcp.engine.readouts.reductions import divergence, log_probabilities
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.comparison.sides import (
    AlignedPrompt,
    ComparedModel,
    base_batch,
    batches_of,
    share_vocabulary,
)
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch
from nnterp_mcp.model.text.tokens import token_text, token_texts


@dataclass(frozen=True)
class PredictionChange:
    """The next-token distributions of two models at the pairs of positions of a prompt.

    Attributes:
        divergence: KL(model ‖ base), in nats; of two vocabularies, given that the next token is one that both have.
        base_top: The base's top tokens.
        base_p: Their probabilities in the base.
        top: The other model's.
        p: Their probabilities in it.
        changed: The top token is another one.
        base_surprise: -log2 of the base's probability of the text up to the next pair, in bits; NaN after the last.
        surprise: The same in the other model.
        base_shared: The base's probability of tokens that both have; 1 with one vocabulary.
        shared: The other model's.
    """

    divergence: Float[Tensor, " pair"]
    base_top: Int[Tensor, " pair"]
    base_p: Float[Tensor, " pair"]
    top: Int[Tensor, " pair"]
    p: Float[Tensor, " pair"]
    changed: Bool[Tensor, " pair"]
    base_surprise: Float[Tensor, " pair"]
    surprise: Float[Tensor, " pair"]
    base_shared: Float[Tensor, " pair"]
    shared: Float[Tensor, " pair"]


@dataclass(frozen=True)
class SharedTokens:
    """The tokens whose text is one token in both of two vocabularies, and those that end a text.

    Attributes:
        base: Their ids in the base.
        model: Their ids in the other model, in the same order.
        base_ends: The tokens that end a text in the base, which count together.
        ends: Those of the other model.
    """

    base: Int[Tensor, " token"]
    model: Int[Tensor, " token"]
    base_ends: Sequence[int]
    ends: Sequence[int]

    def base_outcomes(self, log_probs: Float[Tensor, "row vocabulary"]) -> Float[Tensor, "row outcome"]:
        """The log-probability of each shared token in the base, and last of the end of the text."""
        return _outcomes(log_probs, self.base, self.base_ends)

    def outcomes(self, log_probs: Float[Tensor, "row vocabulary"]) -> Float[Tensor, "row outcome"]:
        """The same in the other model."""
        return _outcomes(log_probs, self.model, self.ends)


def match_vocabularies(base: StandardizedTransformer, model: StandardizedTransformer) -> SharedTokens:
    """The tokens that two models have in common, by their texts."""
    ids = [_ids_by_text(one) for one in (base, model)]
    texts = [text for text in ids[0] if text in ids[1]]
    found = [torch.tensor([one[text] for text in texts], dtype=torch.long) for one in ids]
    return SharedTokens(found[0], found[1], sorted(end_ids(base)), sorted(end_ids(model)))


def _ids_by_text(model: StandardizedTransformer) -> dict[str, int]:
    """The id of each text that one token has; special tokens, and those without a text, are left out."""
    tokenizer = model.tokenizer
    special = {*tokenizer.all_special_ids, *end_ids(model)}
    texts = token_texts(tokenizer, min(model.vocab_size, len(tokenizer)))
    return {text: at for at, text in enumerate(texts) if at not in special and not text.endswith(f"#{at}")}


def _outcomes(log_probs: Tensor, ids: Tensor, ends: Sequence[int]) -> Tensor:
    ended = log_probs[:, list(ends)].logsumexp(-1, keepdim=True)
    return torch.cat([log_probs[:, ids.to(log_probs.device)], ended], dim=-1)


def compare_predictions(
    base: ComparedModel, model: ComparedModel, prompts: Sequence[AlignedPrompt], work: Workload
) -> list[PredictionChange]:
    """Runs both models on each prompt.

    KL is not defined between two vocabularies. Then the distributions are compared given that the next token is one
    that both have, by its text, or the end. A text is the same outcome in both as far as neither would merge it with
    what follows. The surprise needs no such condition: it is that of the same text, by each model's own tokens.

    Args:
        base: The model that is compared with.
        model: The other one.
        prompts: The prompts as both read them.
        work: The size of batches, and where progress is reported.
    """
    one = share_vocabulary(base.model, model.model)
    shared = None if one else match_vocabularies(base.model, model.model)

    def read(batch: Batch, numbers: Sequence[int]) -> list[PredictionChange]:
        chosen = [prompts[number] for number in numbers]
        before = _log_probs(base, base_batch(base, prompts, numbers))
        after = _log_probs(model, batch)
        return [_change(*row, shared, (base, model)) for row in zip(chosen, before, after, strict=True)]

    return batches_of(base, prompts, work).run(model.model, read)


def _log_probs(side: ComparedModel, batch: Batch) -> list[Tensor]:
    """The log-probabilities after every token of each prompt."""
    at = [(row, position) for row, prompt in enumerate(batch.prompts) for position in range(len(prompt.ids))]
    logits = forward(side.model, batch, side.plan, logits=at).logits
    assert logits is not None
    return list(log_probabilities(logits).split([len(prompt.ids) for prompt in batch.prompts]))


def _change(
    prompt: AlignedPrompt,
    before: Tensor,
    after: Tensor,
    shared: SharedTokens | None,
    sides: tuple[ComparedModel, ComparedModel],
) -> PredictionChange:
    base_at, at = (list(positions) for positions in zip(*prompt.pairs, strict=True))
    old, new = before[base_at], after[at]
    (base_p, base_top), (p, top) = old.max(-1), new.max(-1)
    if shared is None:
        apart, changed = divergence(new, old), top != base_top
        base_mass = mass = torch.ones_like(p)
    else:
        outcomes = shared.base_outcomes(old), shared.outcomes(new)
        base_mass, mass = (part.logsumexp(-1).exp().clamp_max(1) for part in outcomes)
        apart = divergence(log_probabilities(outcomes[1]), log_probabilities(outcomes[0]))
        changed = torch.tensor(_texts_differ(base_top.tolist(), top.tolist(), shared, sides))
    fields = (apart, base_top, base_p.exp(), top, p.exp(), changed)
    surprises = (_surprise(before, prompt.base.ids, base_at), _surprise(after, prompt.model.ids, at))
    return PredictionChange(*(part.cpu() for part in (*fields, *surprises, base_mass, mass)))


def _texts_differ(
    base_top: list[int], top: list[int], shared: SharedTokens, sides: tuple[ComparedModel, ComparedModel]
) -> list[bool]:
    """True where neither top token begins with the other: " Par" does not contradict " Paris"."""
    found: list[bool] = []
    for one, other in zip(base_top, top, strict=True):
        if one in shared.base_ends or other in shared.ends:
            found.append((one in shared.base_ends) != (other in shared.ends))
            continue
        texts = [token_text(side.model.tokenizer, token) for side, token in zip(sides, (one, other), strict=True)]
        found.append(not (texts[0].startswith(texts[1]) or texts[1].startswith(texts[0])))
    return found


def _surprise(log_probs: Float[Tensor, "token vocabulary"], ids: Sequence[int], at: Sequence[int]) -> Tensor:
    """-log2 of the probability of the tokens from behind each position up to the next."""
    following = torch.tensor(ids[1:], dtype=torch.long, device=log_probs.device)
    bits = -log_probs[:-1].gather(-1, following[:, None])[:, 0] / torch.log(torch.tensor(2.0))
    sums = [bits[start:stop].sum() for start, stop in pairwise(at)]
    return torch.stack([*sums, torch.full((), torch.nan, device=log_probs.device)])
