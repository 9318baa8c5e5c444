"""`logit_lens` in the worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnterp_mcp.engine.batching import make_batches
from nnterp_mcp.engine.readouts.targets import follow_targets
from nnterp_mcp.experiments.logit_lens import LensReadings, read_lens
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.toolset.logit_lens.params import LogitLensParams
from nnterp_mcp.toolset.logit_lens.result import LayerReading, LogitLensResult, Reading, Readings
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


def run(bench: Bench, params: LogitLensParams, job: Job) -> LogitLensResult:
    """Reads the lens batch by batch, and puts words to its tokens."""
    model = bench.model
    prompts = bench.encode(params.prompts)
    targets = follow_targets(params.targets, model)
    edits = bench.plan(params.interventions, prompts, job)
    positions = [resolve_positions(params.positions, prompt) for prompt in prompts]
    layers = resolve_layers(params.layers, model.num_layers, bench.handle)

    def read(group: Sequence[EncodedPrompt]) -> Readings:
        readings = read_lens(
            model,
            group,
            [positions[prompt.index] for prompt in group],
            layers,
            top_k=params.top_k,
            categories=[list(targets.ids.values())] * len(group),
            inverse=params.lens == "inverse",
            plan=edits,
            batch_tokens=bench.batch_tokens,
            on_batch=lambda done: job.check(),
        )
        return Readings(
            readings=[_reading(readings, index, prompts, model.tokenizer) for index in range(len(readings.prompts))]
        )

    def assemble(parts: Sequence[Readings], taken: int) -> LogitLensResult:
        readings = [reading for part in parts for reading in part.readings]
        return LogitLensResult(
            model=bench.handle,
            lens=params.lens,
            last_layer=model.num_layers - 1,
            categories=targets.words,
            shared=targets.shared,
            interventions=list(edits.labels),
            readings=sorted(readings, key=lambda reading: (reading.prompt, reading.position)),
        )

    batches = make_batches(model, prompts, bench.batch_tokens)
    return job.in_parts([batch.prompts for batch in batches], Readings, read, assemble, "prompts")


def _reading(readings: LensReadings, index: int, prompts: Sequence[EncodedPrompt], tokenizer: Any) -> Reading:
    prompt, position = prompts[readings.prompts[index]], readings.positions[index]
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
    return Reading(
        prompt=prompt.index,
        text=prompt.text,
        position=position,
        token=token_text(tokenizer, prompt.ids[position]),
        leads_from=_leads_from(readings.layers, readings.readout.top_ids[index, :, 0].tolist()),
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
