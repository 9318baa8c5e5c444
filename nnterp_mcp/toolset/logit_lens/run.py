"""`logit_lens` in the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.interventions.lens import LensReadings, read_lens
from nnterp_mcp.interventions.plan import plan
from nnterp_mcp.interventions.prompts import find_shared_tokens, get_first_tokens
from nnterp_mcp.model.layers import resolve_layers
from nnterp_mcp.model.positions import resolve_positions
from nnterp_mcp.model.prompts import EncodedPrompt, encode_prompts, token_text
from nnterp_mcp.session.jobs import Job
from nnterp_mcp.toolset.logit_lens.contract import LayerReading, LogitLensParams, LogitLensResult, Reading

if TYPE_CHECKING:
    from nnterp_mcp.session.worker import Bench


def run(bench: Bench, params: LogitLensParams, job: Job) -> LogitLensResult:
    """Reads the lens and puts words to its tokens."""
    model, settings = bench.model, bench.settings
    if len(params.prompts) > settings.max_prompts:
        raise LimitExceeded(f"{len(params.prompts)} prompts, and this server allows {settings.max_prompts} a call.")
    prompts = encode_prompts(
        model.tokenizer,
        params.prompts,
        bench.handle,
        min(model.context or settings.max_prompt_tokens, settings.max_prompt_tokens),
    )
    targets = {name: get_first_tokens(words, model.tokenizer) for name, words in params.targets.items()}
    edits = plan(
        model,
        params.interventions,
        prompts,
        bench.find_vector,
        batch_tokens=settings.batch_tokens,
        check=job.check,
    )
    readings = read_lens(
        model,
        prompts,
        [resolve_positions(params.positions, prompt) for prompt in prompts],
        resolve_layers(params.layers, model.num_layers, bench.handle),
        top_k=params.top_k,
        targets=targets,
        plan=edits,
        batch_tokens=settings.batch_tokens,
        on_batch=lambda done: job.progress(done, len(prompts), f"{done} of {len(prompts)} prompts"),
    )
    return LogitLensResult(
        model=bench.handle,
        last_layer=model.num_layers - 1,
        categories=_words(targets, model.tokenizer),
        shared=_words({f"{a} and {b}": ids for (a, b), ids in find_shared_tokens(targets).items()}, model.tokenizer),
        interventions=list(edits.labels),
        readings=[_reading(readings, index, prompts, model.tokenizer) for index in range(len(readings.prompts))],
    )


def _words(ids: Mapping[str, Sequence[int]], tokenizer: Any) -> dict[str, list[str]]:
    return {name: [token_text(tokenizer, token) for token in tokens] for name, tokens in ids.items()}


def _reading(readings: LensReadings, index: int, prompts: Sequence[EncodedPrompt], tokenizer: Any) -> Reading:
    prompt, position = prompts[readings.prompts[index]], readings.positions[index]
    columns = zip(
        readings.layers,
        readings.top_ids[index].tolist(),
        readings.top_probs[index].tolist(),
        readings.entropy[index].tolist(),
        readings.kl[index].tolist(),
        readings.target_probs[index].tolist(),
        readings.target_ranks[index].tolist(),
        strict=True,
    )
    return Reading(
        prompt=prompt.index,
        text=prompt.text,
        position=position,
        token=token_text(tokenizer, prompt.ids[position]),
        leads_from=_leads_from(readings.layers, readings.top_ids[index, :, 0].tolist()),
        layers=[
            LayerReading(
                layer=layer,
                top=[(token_text(tokenizer, token), p) for token, p in zip(ids, probs, strict=True)],
                entropy=entropy,
                kl=kl,
                targets=list(zip(target_probs, target_ranks, strict=True)),
            )
            for layer, ids, probs, entropy, kl, target_probs, target_ranks in columns
        ],
    )


def _leads_from(layers: Sequence[int], tops: Sequence[int]) -> int:
    """The first layer from which on the top token is the one of the last layer read."""
    start = len(tops) - 1
    while start > 0 and tops[start - 1] == tops[-1]:
        start -= 1
    return layers[start]
