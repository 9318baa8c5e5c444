"""`load_model` in the worker: finds, reads, wraps and checks the model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nnterp_mcp.session.jobs import Job
from nnterp_mcp.session.model_files import ModelFiles, Origin
from nnterp_mcp.toolset.load_model.contract import CheckLine, LoadModelParams, LoadModelResult

if TYPE_CHECKING:
    from nnterp_mcp.session.bench import Bench

_STEPS = 6


def run(bench: Bench, params: LoadModelParams, job: Job) -> LoadModelResult:
    """Loads the model onto the bench."""
    begun = time.monotonic()
    done = 0.0

    def report(message: str) -> None:
        # How many steps there are shows only on the way: progress must grow with each, and not end before the load.
        nonlocal done
        done += (1 - done) / _STEPS
        job.progress(round(done, 4), 1, message)

    report("starting the worker's libraries")
    from transformers.utils import logging

    from nnterp_mcp.model.census import verified_classes
    from nnterp_mcp.model.load import Precision, locate, read
    from nnterp_mcp.model.memory import held
    from nnterp_mcp.model.standardized import StandardizedTransformer

    logging.disable_progress_bar()
    settings = bench.settings
    code = settings.trust_remote_code
    located = locate(params.model, params.revision, settings.cache, code, report, relative=False)
    files = ModelFiles(located.folder, located.gguf)
    precision = Precision(params.dtype, params.quantization)
    weights, tokenizer = read(located, precision, params.device, params.attention, code, report)
    report("checking the model")
    model = StandardizedTransformer(weights, tokenizer=tokenizer, name=bench.handle)
    bench.place(model, Origin(located.origin, located.revision, files))
    return LoadModelResult(
        handle=bench.handle,
        architecture=type(weights).__name__,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        context=model.context,
        parameters=sum(parameter.numel() for parameter in weights.parameters()),
        dtype=str(weights.dtype).removeprefix("torch."),
        device=str(model.device),
        attention=model.attention,
        memory=held(weights),
        seconds=time.monotonic() - begun,
        source=located.origin,
        revision=located.revision,
        verified=type(weights).__name__ in verified_classes(),
        checks=[CheckLine(name=check.name, passed=check.passed, detail=check.detail) for check in model.checks],
    )
