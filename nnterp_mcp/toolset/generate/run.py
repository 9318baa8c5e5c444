"""`generate` in the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.generation import Generation, generate, with_baseline
from nnterp_mcp.engine.planning.clean_states import Known
from nnterp_mcp.engine.sampling import Sampling
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.compared_runs import measure_divergences
from nnterp_mcp.experiments.text_scores import score_texts
from nnterp_mcp.model.text.tokenization import EncodedPrompt, as_chats
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.toolset.generate.params import GenerateParams
from nnterp_mcp.toolset.generate.result import Continuation, Continued, FeatureControls, GenerateResult
from nnterp_mcp.worker.feature_controls import EditControls, control_edits
from nnterp_mcp.worker.job import Finished, Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


def run(bench: Bench, params: GenerateParams, job: Job) -> GenerateResult:
    """Generates, batch by batch, the baseline and, if there are interventions, the edited text."""
    model = bench.model
    prompts = bench.encode(as_chats(params.prompts) if params.chat else params.prompts, params.max_new_tokens)
    work = replace(bench.workload(prompts, params.interventions, job), new_tokens=params.max_new_tokens)
    drawn = control_edits(bench, params.interventions, prompts)
    controls = None if drawn is None else _Controls.of(bench, drawn, prompts)
    write = _generate if params.max_new_tokens else _score

    def compute(group: Sequence[int]) -> list[Continued]:
        part = work.some(group)
        texts, effects = write(bench, params, part, controls)
        return [
            _continued(prompt, {run: of_run[row] for run, of_run in texts.items()}, effects[row], model.tokenizer)
            for row, prompt in enumerate(part.prompts)
        ]

    def assemble(done: Finished[Continued]) -> GenerateResult:
        return GenerateResult(
            model=bench.handle,
            interventions=list(work.plan.labels),
            logprobs=params.logprobs,
            scored=not params.max_new_tokens,
            controls=drawn and FeatureControls(matched=drawn.drawn, directions=len(drawn.directions)),
            texts=done.items,
        )

    return job.in_parts(work.split(model), Continued, compute, assemble)


@dataclass(frozen=True)
class _Controls:
    """The planned controls of an edit of features.

    Attributes:
        plans: Those of matched sets, then those of random directions.
        matched: How many are of matched sets.
    """

    plans: list[Plan]
    matched: int

    @classmethod
    def of(cls, bench: Bench, drawn: EditControls, prompts: Sequence[EncodedPrompt]) -> _Controls:
        known: Known = {}
        plans = [bench.plan(operations, prompts, known) for operations in (*drawn.matched, *drawn.directions)]
        return cls(plans, len(drawn.matched))

    @property
    def written(self) -> dict[str, Plan]:
        """The first of each kind, of which texts are written."""
        firsts = {"matched": self.plans[0]} if self.matched else {}
        return firsts | {"direction": self.plans[self.matched]}


Texts = Mapping[str, Sequence[Generation]]
"""The text of each prompt by run: `baseline`, and with interventions `edited`, `matched` and `direction`."""

Effects = Sequence[list[float]]
"""For each prompt, the effect of an edit of features, then of each control; empty without any."""


def _generate(
    bench: Bench, params: GenerateParams, work: Workload, controls: _Controls | None
) -> tuple[Texts, Effects]:
    sampling = Sampling(params.temperature, params.top_p, params.top_k, params.seed)
    written = {} if controls is None else controls.written
    runs = with_baseline(work, list(written.values())) if work.plan else work
    texts = generate(bench.model, runs, max_new_tokens=params.max_new_tokens, sampling=sampling)
    count = len(work.prompts)
    names = ["baseline", "edited", *written]
    by_run = {names[at // count]: texts[at : at + count] for at in range(0, len(texts), count)}
    if controls is None:
        return by_run, [[] for _ in work.prompts]
    return by_run, measure_divergences(bench.model, replace(work, new_tokens=0), controls.plans).T.tolist()


def _score(bench: Bench, params: GenerateParams, work: Workload, controls: _Controls | None) -> tuple[Texts, Effects]:
    """The prompts themselves from their second token on, with the log-probabilities that each model gives them."""

    def score(plan: Plan) -> list[Generation]:
        scores = score_texts(bench.model, replace(work, plan=plan))
        texts = zip(work.prompts, scores, strict=True)
        return [Generation(prompt.index, list(prompt.ids[1:]), found) for prompt, found in texts]

    baseline = score(NOTHING)
    if not work.plan:
        return {"baseline": baseline}, [[] for _ in work.prompts]
    edited = score(work.plan)
    scored = [] if controls is None else [edited, *map(score, controls.plans)]
    effects = [[_mean(run[row]) - _mean(plain) for run in scored] for row, plain in enumerate(baseline)]
    texts = {"baseline": baseline, "edited": edited}
    if controls is not None and controls.matched:
        texts["matched"] = scored[1]
    if controls is not None:
        texts["direction"] = scored[1 + controls.matched]
    return texts, effects


def _mean(text: Generation) -> float:
    return sum(text.log_probs) / max(1, len(text.log_probs))


def _continued(
    prompt: EncodedPrompt, texts: Mapping[str, Generation], effects: list[float], tokenizer: Any
) -> Continued:
    plain, other = texts["baseline"], texts.get("edited")
    return Continued(
        index=prompt.index,
        prompt=prompt.text,
        prompt_tokens=len(prompt.ids),
        differs_at=None if other is None else _first_difference(plain.ids, other.ids),
        effects=effects,
        baseline=_continuation(plain, tokenizer),
        edited=None if other is None else _continuation(other, tokenizer),
        matched=_continuation(texts["matched"], tokenizer) if "matched" in texts else None,
        direction=_continuation(texts["direction"], tokenizer) if "direction" in texts else None,
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
