"""Generates text with interventions at every step.

Each step is a forward pass like any other (`engine.run`). Where it can, it reads the newest token alone, on cached keys
and values. How a model's steps are computed is found by trying: the cheapest way that gives what transformers gives for
each text alone, read as a whole, also at lengths beyond the model's windows. Where the model's position encoding
switches, what was cached is of no use, and the text is read again.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.engine.decode_steps import UNBOUNDED, DecodeSteps, Way
from nnterp_mcp.engine.edits import Edit
from nnterp_mcp.engine.executors.remote import executed_remotely
from nnterp_mcp.engine.forward import NOTHING, Plan, attention_for
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.kv_cache import cache_inputs, takes_rows
from nnterp_mcp.engine.sampling import GREEDY, Sampling, sample_tokens
from nnterp_mcp.engine.workload import Workload, ignore_progress
from nnterp_mcp.model.loading.trials import recall
from nnterp_mcp.model.loading.verdicts import TOLERANCES
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.call_recorder import probe_ids
from nnterp_mcp.model.structure.context_lengths import Lengths, lengths_of
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt


@dataclass(frozen=True)
class Generation:
    """The text generated after one prompt.

    Attributes:
        prompt: The prompt's index.
        ids: The new tokens, including the one that ended the text.
        log_probs: Their log-probabilities in nats under the model with its interventions, before temperature
            and truncation.
        ended: Stopped at an end-of-text token.
    """

    prompt: int
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    ended: bool = False


@executed_remotely
def generate(
    model: StandardizedTransformer,
    work: Workload,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
) -> list[Generation]:
    """Generates text after each prompt, with interventions.

    Operations on positions of the prompt act while the prompt is read, and through the cache on everything after it;
    those on `all`, on `last` and on ranges without an end act on every new token too; steps are as they say.

    Args:
        work: The prompts; progress is reported after each step, with the number of steps over all batches.
        max_new_tokens: How many tokens to generate at most.
        sampling: How to choose them.

    Returns:
        One entry for each prompt, in their order.

    Raises:
        InvalidRequest: A vector or a neuron does not fit the states at its place.
        Unsupported: The model does not have one of the places.
    """
    model.require("causal")
    way = find_way(model, max((len(prompt.ids) for prompt in work.prompts), default=0) + max_new_tokens)
    in_parts = not way.cached or _reads_in_parts(model, way, work)
    batches = replace(work, new_tokens=max_new_tokens, padded=way.padded, in_parts=in_parts, progress=ignore_progress)
    total, done = max_new_tokens * len(batches.split(model)), 0

    def say(batch: Batch, numbers: Sequence[int]) -> list[Generation]:
        nonlocal done
        most = work.batch_tokens if in_parts else UNBOUNDED
        loop = _Loop(DecodeSteps(model, batch, work.plan, way, most, max_new_tokens), batch, sampling)
        for _ in range(max_new_tokens):
            check_cancelled()
            loop.step()
            done += 1
            work.progress(done, max(done, total), "steps")
            if loop.ended:
                break
        return loop.generations

    with torch.inference_mode(), attention_for(model, work.plan):
        return batches.run(model, say)


def with_baseline(work: Workload, others: Sequence[Plan] = ()) -> Workload:
    """Every prompt without the operations, then with them, then with those of other plans, so that all share batches.

    Args:
        work: The prompts.
        others: Further plans for the same prompts.
    """
    plans, count = [NOTHING, work.plan, *others], len(work.prompts)
    rows = [replace(prompt, index=row) for row, prompt in enumerate([*work.prompts] * len(plans))]
    edits: dict[Place, list[Edit]] = {}
    for number, plan in enumerate(plans):
        owners = [replace(prompt, index=_UNEDITED) for prompt in work.prompts] * len(plans)
        owners[number * count : (number + 1) * count] = work.prompts
        for place, listed in plan.of_runs(owners).edits.items():
            edits.setdefault(place, []).extend(listed)
    return replace(work, prompts=rows, plan=Plan(edits, work.plan.labels))


_UNEDITED = -1
"""The index of a prompt that no operation reaches."""


class _Loop:
    """The text after each prompt of a batch, token by token.

    Attributes:
        generations: The texts so far.
    """

    def __init__(self, steps: DecodeSteps, batch: Batch, sampling: Sampling) -> None:
        self.generations = [Generation(prompt.index) for prompt in batch.prompts]
        self._rows = list(range(len(batch.prompts)))
        self._steps = steps
        self._sampling = sampling
        self._dice = [sampling.dice(prompt.ids) for prompt in batch.prompts]
        self._ends = end_ids(steps.model)

    @property
    def ended(self) -> bool:
        """Every row has stopped."""
        return all(generation.ended for generation in self.generations)

    def step(self) -> None:
        """Computes the next token of every row; those that end leave the batch, where the model's cache allows it."""
        dice = [self._dice[row] for row in self._rows]
        tokens, log_probs = sample_tokens(self._steps.next_logits(), self._sampling, dice)
        for row, token, log_prob in zip(self._rows, tokens.tolist(), log_probs.tolist(), strict=True):
            text = self.generations[row]
            if not text.ended:
                text.ids.append(token)
                text.log_probs.append(log_prob)
                self.generations[row] = replace(text, ended=token in self._ends)
        self._steps.add(tokens)
        staying = [at for at, row in enumerate(self._rows) if not self.generations[row].ended]
        if 0 < len(staying) < len(self._rows) and self._steps.keep(staying):
            self._rows = [self._rows[at] for at in staying]


WAYS = tuple(itertools.starmap(Way, itertools.product((True, False), repeat=3)))
"""Ways in the order in which they are tried, the cheapest first; whole texts, each alone, are right for any model."""


def end_ids(model: StandardizedTransformer) -> frozenset[int]:
    """The tokens that end a text: those that the model's generation config lists, and the tokenizer's own."""
    config = getattr(model.module, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    ids = [*(listed if isinstance(listed, list | tuple) else [listed]), getattr(model.tokenizer, "eos_token_id", None)]
    return frozenset(token for token in ids if isinstance(token, int))


def until_end(tokens: Sequence[int], ends: Collection[int]) -> list[int]:
    """The tokens up to the first that ends the text, which is among them."""
    return list(tokens[: next((at + 1 for at, token in enumerate(tokens) if token in ends), len(tokens))])


_SHORT, _NEW = 8, 3
"""Tokens of the shortest text that is tried, and how many of them are read one by one."""


@torch.inference_mode()
def find_way(model: StandardizedTransformer, length: int) -> Way:
    """The cheapest way to compute the steps of a text that is right for short texts and beyond each mark below it.

    Args:
        length: The tokens that the longest text is to have.
    """
    lengths = lengths_of(model.module)
    expected: dict[int, list[Tensor]] = {}
    trials = sorted({_SHORT} | {max(_SHORT, mark.length + _NEW - 1) for mark in lengths.below(length)})

    def is_right(way: Way, at: int) -> bool:
        def find() -> bool:
            texts = _texts(model, at, lengths)
            if at not in expected:
                expected[at] = [_alone(model, text) for text in texts]
            return _is_right(model, way, texts, expected[at], UNBOUNDED)

        return recall(model.module, "ways of generation", (astuple(way), at), 0, find)

    return next((way for way in WAYS if all(is_right(way, at) for at in trials)), WAYS[-1])


def _reads_in_parts(model: StandardizedTransformer, way: Way, work: Workload) -> bool:
    """True where prompts are read together, or rows read apart are right in one cache; tried once for each way."""
    if not takes_rows(model.module):
        return False
    if sum(len(prompt.ids) for prompt in work.prompts) <= work.batch_tokens:
        return True

    def find() -> bool:
        texts = _texts(model, _SHORT, lengths_of(model.module))
        return _is_right(model, way, texts, [_alone(model, text) for text in texts], tokens=1)

    return recall(model.module, "joined caches", astuple(way), 0, find)


def _texts(model: StandardizedTransformer, length: int, lengths: Lengths) -> list[list[int]]:
    """A text of so many tokens, and a shorter one that may share a batch with it."""
    ids: list[int] = probe_ids(model.module, length + 1)[0].tolist()
    shares = lengths.share(length - _NEW, length - _NEW - 2, _NEW)
    return [ids[:length], ids[3:]] if shares else [ids[:length]]


def _alone(model: StandardizedTransformer, text: list[int]) -> Float[Tensor, " vocabulary"]:
    """The logits that transformers gives after a text read as a whole."""
    with model.standing_down():
        ids = torch.tensor([text], device=model.device)
        return model.module(input_ids=ids, **cache_inputs(model.module, None)).logits[0, -1].float().cpu()


def _is_right(
    model: StandardizedTransformer, way: Way, texts: list[list[int]], expected: list[Tensor], tokens: int
) -> bool:
    """Checks that the last of some steps gives the logits of each text alone."""
    prompts = [EncodedPrompt(row, "", text[:-_NEW], []) for row, text in enumerate(texts)]
    try:
        for batch in Workload(prompts, batch_tokens=UNBOUNDED, new_tokens=_NEW, padded=way.padded).batches(model):
            steps = DecodeSteps(model, batch, NOTHING, way, tokens)
            logits = steps.next_logits()
            for at in range(_NEW, 0, -1):
                steps.add(torch.tensor([texts[prompt.index][-at] for prompt in batch.prompts]))
                logits = steps.next_logits()
            for prompt, found in zip(batch.prompts, logits.float().cpu(), strict=True):
                alone = expected[prompt.index]
                allowed = TOLERANCES.get(model.module.dtype, 1e-1) * max(float(alone.abs().max()), 1.0)
                if not bool((found - alone).abs().max() <= allowed):
                    return False
    except Exception as error:  # whatever else the modelling code raises, it takes no such cache, or such positions
        if says_nothing(error):
            raise
        return False
    return True
