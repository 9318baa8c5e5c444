"""`logit_lens` in the worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any

from nnterp_mcp.engine.readouts.targets import follow_targets
from nnterp_mcp.experiments.logit_lens import LensReadings, leading_from, read_lens
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.toolset.logit_lens.decomposition import Decomposer
from nnterp_mcp.toolset.logit_lens.params import LogitLensParams
from nnterp_mcp.toolset.logit_lens.result import LayerReading, LensReading, LogitLensResult
from nnterp_mcp.worker.job import Finished, Job
from nnterp_mcp.worker.lenses import find_lens

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


def run(bench: Bench, params: LogitLensParams, job: Job) -> LogitLensResult:
    """Reads the lens batch by batch, and decodes its tokens."""
    model = bench.model
    prompts = bench.encode(params.prompts)
    targets = follow_targets(params.targets, model)
    work = bench.workload(prompts, params.interventions, job)
    positions = [resolve_positions(params.positions, prompt) for prompt in prompts]
    layers = resolve_layers(params.layers, model.num_layers, bench.handle)
    fitted = find_lens(bench, params.lens, job.tell)
    decomposer = Decomposer(model, fitted and fitted[0], params.decompose) if params.decompose else None

    def read(group: Sequence[int]) -> Iterator[list[LensReading]]:
        found = read_lens(
            model,
            work.some(group),
            [positions[number] for number in group],
            layers,
            top_k=params.top_k,
            categories=[list(targets.ids.values())] * len(group),
            inverse=params.lens == "inverse",
            translation=fitted and fitted[0],
        )
        readings = (_reading(found, index, prompts, model.tokenizer) for index in count())
        if decomposer is not None:
            every = list(islice(readings, len(found.prompts)))
            readings = iter(decomposer.extend(every, work.some(group), [positions[number] for number in group], layers))
        return (list(islice(readings, len(positions[number]))) for number in group)

    def assemble(done: Finished[list[LensReading]]) -> LogitLensResult:
        return LogitLensResult(
            model=bench.handle,
            lens=params.lens,
            fitted=fitted and fitted[1],
            last_layer=model.num_layers - 1,
            categories=targets.words,
            shared=targets.shared,
            interventions=list(work.plan.labels),
            readings=list(chain(*done.items)),
        )

    return job.in_parts(work.split(model), list[LensReading], read, assemble)


def _reading(readings: LensReadings, index: int, prompts: Sequence[EncodedPrompt], tokenizer: Any) -> LensReading:
    prompt, position, plain = prompts[readings.prompts[index]], readings.positions[index], readings.plain
    columns = zip(
        readings.layers,
        readings.readout.top_ids[index].tolist(),
        readings.readout.top_probs[index].tolist(),
        readings.readout.entropy[index].tolist(),
        readings.kl[index].tolist(),
        readings.readout.target_probs[index].tolist(),
        readings.readout.target_ranks[index].tolist(),
        strict=True,
    )
    return LensReading(
        prompt=prompt.index,
        text=prompt.text,
        position=position,
        token=token_text(tokenizer, prompt.ids[position]),
        leads_from=_leads_from(readings, index),
        plain_leads_from=plain and _leads_from(plain, index),
        layers=[
            LayerReading(
                layer=layer,
                top=[(token_text(tokenizer, token), p) for token, p in zip(ids, probs, strict=True)],
                entropy=entropy,
                kl=kl,
                targets=list(zip(target_probs, target_ranks, strict=True)),
                plain=plain and _top(plain, index, at, tokenizer),
            )
            for at, (layer, ids, probs, entropy, kl, target_probs, target_ranks) in enumerate(columns)
        ],
    )


def _leads_from(readings: LensReadings, index: int) -> int:
    return readings.layers[leading_from(readings.readout.top_ids[index, :, 0].tolist())]


def _top(readings: LensReadings, index: int, at: int, tokenizer: Any) -> tuple[str, float]:
    readout = readings.readout
    return token_text(tokenizer, int(readout.top_ids[index, at, 0])), float(readout.top_probs[index, at, 0])
