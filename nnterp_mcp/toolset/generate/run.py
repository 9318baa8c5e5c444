"""`generate` in the worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from nnterp_mcp.interventions.engine import NOTHING, Plan
from nnterp_mcp.interventions.generation import Generation, generate
from nnterp_mcp.interventions.sampling import Sampling
from nnterp_mcp.model.prompts import EncodedPrompt, as_chats, token_text
from nnterp_mcp.session.jobs import Job
from nnterp_mcp.toolset.generate.contract import Continuation, Continued, GenerateParams, GenerateResult

if TYPE_CHECKING:
    from nnterp_mcp.session.bench import Bench


def run(bench: Bench, params: GenerateParams, job: Job) -> GenerateResult:
    """Generates the baseline and, if there are interventions, the edited text."""
    prompts = bench.encode(as_chats(params.prompts) if params.chat else params.prompts, params.max_new_tokens)
    edits = bench.plan(params.interventions, prompts, job)
    steps = count(1)
    baseline = _generate(bench, params, prompts, NOTHING, job, steps)
    edited = _generate(bench, params, prompts, edits, job, steps) if edits else [None] * len(prompts)
    tokenizer = bench.model.tokenizer
    return GenerateResult(
        model=bench.handle,
        interventions=list(edits.labels),
        logprobs=params.logprobs,
        texts=[
            Continued(
                prompt=prompt.text,
                prompt_tokens=len(prompt.ids),
                baseline=_continuation(plain, tokenizer),
                edited=None if other is None else _continuation(other, tokenizer),
                differs_at=None if other is None else _first_difference(plain.ids, other.ids),
            )
            for prompt, plain, other in zip(prompts, baseline, edited, strict=True)
        ],
    )


def _generate(
    bench: Bench,
    params: GenerateParams,
    prompts: Sequence[EncodedPrompt],
    edits: Plan,
    job: Job,
    steps: Iterator[int],
) -> list[Generation]:
    return generate(
        bench.model,
        prompts,
        edits,
        max_new_tokens=params.max_new_tokens,
        sampling=Sampling(params.temperature, params.top_p, params.top_k, params.seed),
        batch_tokens=bench.settings.batch_tokens,
        on_token=lambda done: job.progress(next(steps), None, f"{'edited' if edits else 'baseline'}: step {done}"),
        should_stop=job.check,
    )


def _continuation(generation: Generation, tokenizer: Any) -> Continuation:
    return Continuation(
        text=tokenizer.decode(generation.ids, skip_special_tokens=True),
        tokens=[token_text(tokenizer, token) for token in generation.ids],
        log_probs=generation.log_probs,
        ended=generation.ended,
    )


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first new token that differs, from 0; where one text ends earlier, its end."""
    if list(one) == list(other):
        return None
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
