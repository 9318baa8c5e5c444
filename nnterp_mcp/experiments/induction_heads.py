"""Known kinds of heads, and copying, on repeated random tokens, which neither grammar nor meaning predicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.forward import LogitReduction, forward
from nnterp_mcp.engine.readouts.reductions import gather_log_probs
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.attention_patterns import (
    AttentionNumbers,
    AttentionTarget,
    HeadChoice,
    capture_heads,
    choose_heads,
)
from nnterp_mcp.model.loading.trials import recall
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt


@dataclass(frozen=True)
class RepeatedTokens:
    """Sequences of random tokens, each twice in a row.

    Attributes:
        prompts: The sequences, behind what the tokenizer begins a text with.
        begin: Where the first copy begins.
        length: The tokens of a copy, all of them different.
        seed: The seed with which they were drawn.
    """

    prompts: list[EncodedPrompt]
    begin: int
    length: int
    seed: int

    @property
    def second(self) -> range:
        """The positions of the second copy."""
        return range(self.begin + self.length, self.begin + 2 * self.length)


@dataclass(frozen=True)
class HeadKinds:
    """Scores of heads on repeated random tokens, on the CPU.

    Attributes:
        heads: Layer and number of each head.
        previous: Attention from the second copy to the previous token, in the mean.
        duplicate: To the same token in the first copy.
        induction: To the token after that one, which comes next.
        probability: Probability that the model gives the right next token in the second copy, in the mean.
        log_probability: The same of its logarithm, in nats.
    """

    heads: list[tuple[int, int]]
    previous: Float[Tensor, "sequence head"]
    duplicate: Float[Tensor, "sequence head"]
    induction: Float[Tensor, "sequence head"]
    probability: Float[Tensor, " sequence"]
    log_probability: Float[Tensor, " sequence"]

    def of(self, chosen: Sequence[HeadChoice]) -> HeadKinds:
        """The same of some of the heads."""
        heads = [(layer, head) for layer, some in chosen for head in some]
        numbers = {head: number for number, head in enumerate(self.heads)}
        at = torch.tensor([numbers[head] for head in heads])
        previous, duplicate, induction = (scores[:, at] for scores in (self.previous, self.duplicate, self.induction))
        return replace(self, heads=heads, previous=previous, duplicate=duplicate, induction=induction)


def repeat_random_tokens(
    model: StandardizedTransformer, count: int = 4, length: int = 50, seed: int = 0
) -> RepeatedTokens:
    """Draws sequences of different tokens, special ones excepted, and writes each of them twice.

    Args:
        model: The model, whose vocabulary is drawn from.
        count: How many sequences.
        length: Tokens of a copy, fewer where the model's context or vocabulary has no room.
        seed: Equal seeds give equal sequences.

    Raises:
        Unsupported: The model has no room for two copies of two tokens.
    """
    tokenizer: Any = model.tokenizer
    special = set(tokenizer.all_special_ids)
    known = min(len(tokenizer), model.vocab_size, model.embedded)
    first = tokenizer("a", verbose=False)["input_ids"][:1]
    start = [token for token in first if token in special and token < model.embedded]
    words = torch.tensor([token for token in range(known) if token not in special])
    room = length if model.context is None else (model.context - len(start)) // 2
    length = min(length, room, len(words))
    if length < 2:
        raise Unsupported(f"{model.name} has no room for repeated random tokens.")
    generator = torch.Generator().manual_seed(seed)
    prompts: list[EncodedPrompt] = []
    for index in range(count):
        copy = words[torch.randperm(len(words), generator=generator)[:length]].tolist()
        ids = [*start, *copy, *copy]
        prompts.append(EncodedPrompt(index, tokenizer.decode(ids), ids, []))
    return RepeatedTokens(prompts, len(start), length, seed)


def recall_kinds(model: StandardizedTransformer, work: Workload, repeated: RepeatedTokens) -> HeadKinds:
    """The kinds of all heads of a model without interventions, scored once for all loads of its weights.

    Args:
        model: The model.
        work: The sequences of `repeated`.
        repeated: As `repeat_random_tokens` makes them.

    Raises:
        Unsupported: As in `score_heads`.
    """

    def score() -> dict[str, Any]:
        kinds = score_heads(model, work, choose_heads(model), repeated.second)
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(kinds).items()}

    situation = (model.fingerprint, len(repeated.prompts), repeated.length, repeated.seed)
    known = recall(model.module, "kinds of heads", situation, 0, score)
    heads = [(layer, head) for layer, head in known["heads"]]
    return HeadKinds(heads, **{name: torch.tensor(value) for name, value in known.items() if name != "heads"})


def score_heads(
    model: StandardizedTransformer, work: Workload, chosen: Sequence[HeadChoice], second: range
) -> HeadKinds:
    """Scores heads as previous-token, duplicate-token and induction heads, and the model as a copier.

    A score is the attention from the second copy of a sequence to the token that defines the kind, in the mean over
    its positions: 1 is a head that does nothing else. Tokens are random, so neither grammar nor meaning points there.
    A head can have a high score and still write nothing that matters: knock it out to see what copying loses.
    A head whose sliding window is shorter than a copy cannot show.

    Args:
        model: The model; it attends eagerly during the call only.
        work: The sequences, as `repeat_random_tokens` makes them.
        chosen: The heads.
        second: The positions of the second copy.

    Raises:
        Unsupported: A place that the plan needs is missing.

    Source: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021); Olsson et al., "In-context
    Learning and Induction Heads" (2022).
    """

    def score(batch: Batch, numbers: Sequence[int]) -> Iterable[tuple[AttentionNumbers, Tensor]]:
        places = [(row, at) for row in range(len(numbers)) for at in second[:-1]]
        asking = capture_heads(model, batch, [second] * len(numbers), chosen)
        following = [token for prompt in batch.prompts for token in prompt.ids[second.start + 1 :]]
        reduction = LogitReduction(gather_log_probs, {"tokens": torch.tensor(following)})
        passed = forward(model, batch, work.plan, asking.captures, places, reduction)
        copied = passed.numbers["log_probs"].unflatten(0, (len(numbers), -1)).cpu()
        return zip(asking.join(passed.values).by_prompt([0] * len(numbers)), copied, strict=True)

    found, copied = zip(*work.run(model, score, patterns=True, unit="sequences of random tokens"), strict=True)

    def scores(target: AttentionTarget) -> Float[Tensor, "sequence head"]:
        return torch.cat([numbers.of(target).cpu() for numbers in found])

    return HeadKinds(
        heads=[(layer, head) for layer, heads in chosen for head in heads],
        previous=scores("previous"),
        duplicate=scores("duplicate"),
        induction=scores("induction"),
        probability=torch.stack(copied).exp().mean(-1),
        log_probability=torch.stack(copied).mean(-1),
    )
