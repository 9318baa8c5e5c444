"""`attention_probs` in the worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest, LimitExceeded
from nnterp_mcp.experiments.attention_patterns import (
    ATTENTION_TARGETS,
    AttentionReadings,
    HeadChoice,
    OnPattern,
    choose_heads,
    read_attention,
)
from nnterp_mcp.experiments.induction_heads import (
    HeadKinds,
    RepeatedTokens,
    recall_kinds,
    repeat_random_tokens,
    score_heads,
)
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.operations import Operation, Patch, SetAttention
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.toolset.attention_probs.params import AttentionProbsParams
from nnterp_mcp.toolset.attention_probs.result import (
    AttendedPair,
    AttentionProbsResult,
    Copying,
    HeadRead,
    HeadReading,
    KindScores,
    Masses,
    QueryReading,
)
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_KEYS = 200_000
"""Keys that the queries of one call may name."""

_PATTERNS = 1 << 24
"""Attention probabilities that a run keeps whole, over all its prompts."""

_STOPPED = "the run was stopped before"
_TIED = "the interventions name positions or prompts, which random tokens do not have"


def run(bench: Bench, params: AttentionProbsParams, job: Job) -> AttentionProbsResult:
    """Reads the prompts, and repeated random tokens where kinds are wanted."""
    model = bench.model
    prompts = bench.encode(params.prompts)
    chosen = choose_heads(model, params.layers, params.heads)
    queries = _queries(params, prompts, chosen)
    wanted = params.query_positions is None if params.kinds is None else params.kinds
    fits = all(_acts_everywhere(operation) for operation in params.interventions)
    if params.kinds and not fits:
        raise InvalidRequest(
            f"kinds of heads cannot be scored: {_TIED}.", "Leave out kinds, or let them act at all positions."
        )
    work = bench.workload(prompts, params.interventions, job)

    def result(
        readings: AttentionReadings, scored: tuple[HeadKinds, RepeatedTokens] | None, unscored: str | None
    ) -> AttentionProbsResult:
        kinds = None if scored is None else scored[0]
        return AttentionProbsResult(
            model=bench.handle,
            prompts=len(readings.prompts),
            tokens=[[token_text(model.tokenizer, token) for token in prompt.ids] for prompt in prompts],
            without_attention=_without_attention(model, params, chosen),
            interventions=list(work.plan.labels),
            unscored=unscored,
            copying=None if scored is None else _copying(*scored),
            heads=_head_readings(readings, kinds, prompts, model.tokenizer),
            queries=_query_readings(readings, prompts, model.tokenizer),
        )

    def offer(so_far: Callable[[], AttentionReadings]) -> None:
        job.partial = lambda: result(so_far(), None, _STOPPED if wanted else None)

    readings = read_attention(
        model,
        work,
        chosen,
        queries,
        top_k=params.top_k,
        on_pattern=_keeper(job, prompts, chosen),
        offer=offer,
    )
    scored = _score(bench, params, chosen, job) if wanted and fits else None
    return result(readings, scored, _TIED if wanted and not fits else None)


def _keeper(job: Job, prompts: Sequence[EncodedPrompt], chosen: Sequence[HeadChoice]) -> OnPattern | None:
    """Stores each prompt's whole pattern with the run; None where they are too large together."""
    names = [f"L{layer}H{head}" for layer, heads in chosen for head in heads]
    if sum(len(prompt.ids) ** 2 for prompt in prompts) * len(names) > _PATTERNS:
        return None

    def keep(prompt: int, pattern: Tensor) -> None:
        positions = list(range(pattern.shape[-1]))
        name = "attention" if len(prompts) == 1 else f"attention_{prompt}"
        job.keep(name, pattern, {"head": names, "query": positions, "key": positions})

    return keep


def _queries(
    params: AttentionProbsParams, prompts: Sequence[EncodedPrompt], chosen: Sequence[HeadChoice]
) -> list[list[int]] | None:
    if params.query_positions is None:
        return None
    queries = [resolve_positions(params.query_positions, prompt) for prompt in prompts]
    keys = sum(len(at) for at in queries) * sum(len(heads) for _, heads in chosen) * params.top_k
    if keys > _KEYS:
        raise LimitExceeded(
            f"these queries would name {keys} keys, and a call may name {_KEYS}.",
            "Choose fewer query_positions, layers or heads, or a smaller top_k.",
        )
    return queries


def _acts_everywhere(operation: Operation) -> bool:
    """The operation means the same on any sequence of tokens."""
    names = ("positions", "query_positions", "key_positions")
    anywhere = all(getattr(operation, name, ("all",)) == ("all",) for name in names) and operation.prompts == "all"
    from_prompt = isinstance(operation, Patch) or (
        isinstance(operation, SetAttention) and not isinstance(operation.pattern, str)
    )
    return anywhere and not from_prompt


def _score(
    bench: Bench, params: AttentionProbsParams, chosen: Sequence[HeadChoice], job: Job
) -> tuple[HeadKinds, RepeatedTokens]:
    """The kinds of heads; those of the unedited model are scored once."""
    repeated = repeat_random_tokens(bench.model)
    work = bench.workload(repeated.prompts, params.interventions, job)
    if work.plan:
        return score_heads(bench.model, work, chosen, repeated.second), repeated
    return recall_kinds(bench.model, work, repeated).of(chosen), repeated


def _without_attention(
    model: StandardizedTransformer, params: AttentionProbsParams, chosen: Sequence[HeadChoice]
) -> dict[str, list[int]]:
    read = {layer for layer, _ in chosen}
    lacking: dict[str, list[int]] = {}
    for layer in resolve_layers(params.layers, model.num_layers, model.name):
        if layer not in read:
            lacking.setdefault(model.anatomy.layers[layer].kind, []).append(layer)
    return lacking


def _copying(kinds: HeadKinds, repeated: RepeatedTokens) -> Copying:
    return Copying(
        sequences=len(repeated.prompts),
        length=repeated.length,
        seed=repeated.seed,
        probability=float(kinds.probability.mean()),
        log_probability=float(kinds.log_probability.mean()),
        deviation=float(kinds.log_probability.std(correction=0)),
    )


def _head_readings(
    readings: AttentionReadings, kinds: HeadKinds | None, prompts: Sequence[EncodedPrompt], tokenizer: Any
) -> list[HeadReading]:
    columns = {"entropy": readings.entropy, "sink": readings.sink} | {
        name: readings.of(name) for name in ATTENTION_TARGETS
    }
    means = _by_head({name: values.nanmean(0) for name, values in columns.items()})
    deviations = _by_head({name: _deviation(values) for name, values in columns.items()})
    scores = (
        None if kinds is None else _by_head({name: getattr(kinds, name).mean(0) for name in KindScores.model_fields})
    )
    several = len(readings.prompts) > 1
    return [
        HeadReading(
            layer=layer,
            head=head,
            mean=Masses(**means[index]),
            deviation=Masses(**deviations[index]) if several else None,
            kinds=None if scores is None else KindScores.model_validate(scores[index]),
            pairs=_pairs(readings, index, prompts, tokenizer),
        )
        for index, (layer, head) in enumerate(readings.heads)
    ]


def _deviation(values: Float[Tensor, "prompt head"]) -> Float[Tensor, " head"]:
    """The standard deviation over the prompts that have a value."""
    return (values - values.nanmean(0)).square().nanmean(0).sqrt()


def _by_head(columns: dict[str, Float[Tensor, " head"]]) -> list[dict[str, float | None]]:
    """Each head's numbers by name, None for those that are not defined."""
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    return [{name: None if isnan(value) else value for name, value in zip(columns, row, strict=True)} for row in rows]


def _pairs(
    readings: AttentionReadings, head: int, prompts: Sequence[EncodedPrompt], tokenizer: Any
) -> list[AttendedPair]:
    """The strongest pairs of a head over all prompts."""
    probs = readings.pair_probs[:, head]
    count = probs.shape[-1]
    best = probs.flatten().topk(count)
    found: list[AttendedPair] = []
    for probability, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        row, column = divmod(place, count)
        query, key = int(readings.pair_queries[row, head, column]), int(readings.pair_keys[row, head, column])
        prompt = readings.prompts[row]
        ids = prompts[prompt].ids
        if probability > 0:
            found.append(
                AttendedPair(
                    prompt=prompt,
                    query=query,
                    query_token=token_text(tokenizer, ids[query]),
                    key=key,
                    key_token=token_text(tokenizer, ids[key]),
                    probability=probability,
                )
            )
    return found


def _query_readings(
    readings: AttentionReadings, prompts: Sequence[EncodedPrompt], tokenizer: Any
) -> list[QueryReading]:
    return [
        QueryReading(
            prompt=prompt,
            position=position,
            token=token_text(tokenizer, prompts[prompt].ids[position]),
            heads=_head_reads(readings, row, prompts[prompt], tokenizer),
        )
        for row, (prompt, position) in enumerate(readings.reads)
    ]


def _head_reads(readings: AttentionReadings, row: int, prompt: EncodedPrompt, tokenizer: Any) -> list[HeadRead]:
    columns = zip(
        readings.heads,
        readings.read_first[row].tolist(),
        readings.read_keys[row].tolist(),
        readings.read_probs[row].tolist(),
        strict=True,
    )
    return [
        HeadRead(
            layer=layer,
            head=head,
            first=first,
            keys=[(token_text(tokenizer, prompt.ids[at]), at, p) for at, p in zip(keys, probs, strict=True) if p > 0],
        )
        for (layer, head), first, keys, probs in columns
    ]
