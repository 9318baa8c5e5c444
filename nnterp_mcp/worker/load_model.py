"""`load_model` in the worker: finds, reads, wraps and checks the model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nnterp_mcp.errors import Forbidden, InvalidRequest
from nnterp_mcp.request.adapter_folder import split_scale
from nnterp_mcp.toolset.load_model.params import LoadModelParams
from nnterp_mcp.toolset.load_model.result import CheckLine, LoadModelResult
from nnterp_mcp.worker.adapters import load_adapter
from nnterp_mcp.worker.collection import collection_paused
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.model_files import ModelFiles, ModelOrigin

if TYPE_CHECKING:
    from nnterp_mcp.model.loading.locations import Report
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.worker.workbench import Bench

_STEPS = 6


def run(bench: Bench, params: LoadModelParams, job: Job) -> LoadModelResult:
    """Loads the model onto the bench."""
    begun = time.monotonic()
    done = 0.0

    def report(message: str) -> None:
        # How many steps there are shows only on the way: progress must grow with each, and not end before the load.
        nonlocal done
        done += (1 - done) / _STEPS
        job.check()
        job.tell(message, round(done, 4), 1)

    from transformers.utils import logging

    logging.disable_progress_bar()
    if params.adapter is not None:
        from nnterp_mcp.model.loading.adapter_files import locate_adapter

        source, scale = split_scale(params.adapter)
        load_adapter(bench, locate_adapter(source, report), scale, report)
        return card_of(bench, time.monotonic() - begun)
    model, origin = (_load_served if params.backend == "ndif" else _load)(bench, params, report)
    bench.place(model, origin)
    bench.request = params.model_dump(mode="json")
    return card_of(bench, time.monotonic() - begun)


def card_of(bench: Bench, seconds: float = 0.0) -> LoadModelResult:
    """The card of the model on a bench, which took so long to load."""
    from nnterp_mcp.verification.census import verified_classes

    model, origin, adapter = bench.model, bench.origin, bench.adapter
    shared = 0 if bench.base is None else bench.base.model.held_bytes
    architecture = type(model.module).__name__
    return LoadModelResult(
        handle=bench.handle,
        architecture=architecture,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        context=model.context,
        parameters=sum(parameter.numel() for parameter in model.module.parameters()),
        dtype=str(model.computing_dtype).removeprefix("torch."),
        device=model.computing_on[0],
        attention=model.attention,
        memory=model.held_bytes - shared,
        seconds=seconds,
        source=origin.source,
        revision=origin.revision,
        verified=architecture in verified_classes(),
        checks=[CheckLine(name=check.name, passed=check.passed, detail=check.detail) for check in model.checks],
        checked_before=model.checked_before,
        adapter=None if adapter is None else str(adapter),
        base=None if bench.base is None else bench.base.handle,
        adapter_of=None if adapter is None else adapter.base_name,
        adapter_revision=None if adapter is None else adapter.revision,
    )


def _load(bench: Bench, params: LoadModelParams, report: Report) -> tuple[StandardizedTransformer, ModelOrigin]:
    """Reads a model onto this machine."""
    from nnterp_mcp.model.loading.former_checks import FormerChecks
    from nnterp_mcp.model.loading.load import Precision, read_model
    from nnterp_mcp.model.loading.locate import convert_once, locate
    from nnterp_mcp.model.standardized import StandardizedTransformer

    settings = bench.settings
    code = settings.trust_remote_code
    located = locate(params.model, params.revision, settings.cache, code, report, relative=False)
    precision = Precision(params.dtype, params.quantization)
    converted = convert_once(located, settings.cache, report)
    former = None if converted.gguf else FormerChecks(converted.folder, settings.cache)
    with collection_paused():
        weights, tokenizer = read_model(converted, precision, params.device, params.attention, code, report, former)
        report("checking the model")
        model = StandardizedTransformer(weights, tokenizer=tokenizer, name=bench.handle, former=former)
    # Hashed after the checks, from which it would take a core.
    return model, ModelOrigin(located.origin, located.revision, ModelFiles(located.folder, located.gguf))


def _load_served(bench: Bench, params: LoadModelParams, report: Report) -> tuple[StandardizedTransformer, ModelOrigin]:
    """Builds the outline of a model that NDIF serves.

    Raises:
        Forbidden: The server may not use NDIF.
        InvalidRequest: A parameter is for the service to decide.
    """
    from nnterp_mcp.engine.executors.ndif.load import Service, load_served

    settings = bench.settings
    if settings.ndif_host is None:
        raise Forbidden(
            "this server sends nothing to NDIF", "Whoever starts the server allows it with --ndif, and an address."
        )
    decided = {"dtype": params.dtype != "auto", "device": params.device != "auto", "quantization": params.quantization}
    for name in (name for name, given in decided.items() if given):
        raise InvalidRequest(f"{name} is for the NDIF service to decide: leave it out with backend 'ndif'.")
    served = load_served(
        params.model,
        params.revision,
        bench.handle,
        Service(settings.ndif_host, settings.ndif_key()),
        settings.cache,
        settings.trust_remote_code,
        report,
    )
    if params.attention != "auto":
        served.model.set_attention(params.attention)
    return served.model, ModelOrigin(f"NDIF at {settings.ndif_host}", served.located.revision, versions=served.versions)
