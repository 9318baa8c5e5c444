"""`generate` in the worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.generation import Generation, generate, with_baseline
from nnterp_mcp.engine.sampling import Sampling
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.text_scores import score_texts
from nnterp_mcp.model.text.tokenization import EncodedPrompt, as_chats
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.toolset.generate.params import GenerateParams
from nnterp_mcp.toolset.generate.result import Continuation, Continued, GenerateResult
from nnterp_mcp.worker.job import Finished, Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


def run(bench: Bench, params: GenerateParams, job: Job) -> GenerateResult:
    """Generates, batch by batch, the baseline and, if there are interventions, the edited text."""
    model = bench.model
    prompts = bench.encode(as_chats(params.prompts) if params.chat else params.prompts, params.max_new_tokens)
    work = replace(bench.workload(prompts, params.interventions, job), new_tokens=params.max_new_tokens)
    write = _generate if params.max_new_tokens else _score

    def compute(group: Sequence[int]) -> list[Continued]:
        part = work.some(group)
        baseline, edited = write(bench, params, part, job)
        return [_continued(*texts, model.tokenizer) for texts in zip(part.prompts, baseline, edited, strict=True)]

    def assemble(done: Finished[Continued]) -> GenerateResult:
        return GenerateResult(
            model=bench.handle,
            interventions=list(work.plan.labels),
            logprobs=params.logprobs,
            scored=not params.max_new_tokens,
            texts=done.items,
        )

    return job.in_parts(work.split(model), Continued, compute, assemble)


Texts = tuple[Sequence[Generation], Sequence[Generation | None]]
"""The texts of the model as it is, and the edited ones; None where nothing is edited."""


def _generate(bench: Bench, params: GenerateParams, work: Workload, job: Job) -> Texts:
    sampling = Sampling(params.temperature, params.top_p, params.top_k, params.seed)
    runs = with_baseline(work) if work.plan else work
    texts = generate(bench.model, runs, max_new_tokens=params.max_new_tokens, sampling=sampling)
    count = len(work.prompts)
    return texts[:count], texts[count:] or [None] * count


def _score(bench: Bench, params: GenerateParams, work: Workload, job: Job) -> Texts:
    """The prompts themselves from their second token on, with the log-probabilities that each model gives them."""

    def score(plan: Plan) -> list[Generation]:
        scores = score_texts(bench.model, replace(work, plan=plan))
        texts = zip(work.prompts, scores, strict=True)
        return [Generation(prompt.index, list(prompt.ids[1:]), found) for prompt, found in texts]

    return score(NOTHING), score(work.plan) if work.plan else [None] * len(work.prompts)


def _continued(prompt: EncodedPrompt, plain: Generation, other: Generation | None, tokenizer: Any) -> Continued:
    return Continued(
        index=prompt.index,
        prompt=prompt.text,
        prompt_tokens=len(prompt.ids),
        baseline=_continuation(plain, tokenizer),
        edited=None if other is None else _continuation(other, tokenizer),
        differs_at=None if other is None else _first_difference(plain.ids, other.ids),
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
