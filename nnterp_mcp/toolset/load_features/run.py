"""`load_features` in the worker."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.calibration import (
    Candidate,
    Reconstructed,
    compare_places,
    find_better,
    list_others,
    measure_fit,
    measure_losses,
    read_all,
)
from nnterp_mcp.experiments.features.published import Published
from nnterp_mcp.request.dictionaries import UNLOAD, DictionaryCard, DictionaryLayer
from nnterp_mcp.request.feature_sites import FeaturePlace
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.toolset.load_features.params import LoadFeaturesParams
from nnterp_mcp.toolset.load_features.result import FeatureFit, LoadedLayer, LoadFeaturesResult
from nnterp_mcp.worker.feature_controls import built_in_texts
from nnterp_mcp.worker.feature_labels import find_labels, labels_of
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_ELSEWHERE = 5
"""Other places that a result names."""


def run(bench: Bench, params: LoadFeaturesParams, job: Job) -> LoadFeaturesResult:
    """Finds the dictionaries, checks each against the model, and keeps their card; or forgets them."""
    if params.source == UNLOAD:
        return _unload(bench, params)
    layers = None if params.layers == "all" else resolve_layers(params.layers, bench.model.num_layers, bench.handle)
    kept = bench.dictionaries
    found, source, revision = kept.publish(params.source, layers, job.tell)
    if not found:
        raise InvalidRequest(f"{params.source} has no dictionary of these layers.")
    dictionaries = [kept.place(one, params.site) for one in found]  # pyright: ignore[reportArgumentType]
    labels = [find_labels(params.labels, one, bench.settings) for one in dictionaries]
    work = bench.workload(built_in_texts(bench), (), job)
    kept.shelf.drop(params.name)
    loaded: list[LoadedLayer] = []
    for number, one in enumerate(dictionaries):
        told = labels_of(labels[number], (), bench.settings)
        loaded.append(_calibrate(bench, params.name, one, work).model_copy(update={"labels": told and told.source}))
        job.progress(number + 1, len(dictionaries), "dictionaries checked")
    kept.store.save(
        DictionaryCard(
            name=params.name,
            identity=bench.identity,
            source=source,
            revision=revision,
            layers=[_entry(*each) for each in zip(dictionaries, loaded, labels, strict=True)],
            request=params.model_dump(mode="json", exclude={"model"}, exclude_defaults=True),
            made=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    )
    return LoadFeaturesResult(
        model=bench.handle,
        name=params.name,
        source=params.source,
        revision=revision,
        tokens=sum(len(prompt.ids) - 1 for prompt in work.prompts),
        layers=loaded,
    )


def _unload(bench: Bench, params: LoadFeaturesParams) -> LoadFeaturesResult:
    kept = bench.dictionaries
    kept.store.delete(params.name, bench.identity, bench.handle)
    freed = kept.shelf.drop(params.name)
    return LoadFeaturesResult(
        model=bench.handle, name=params.name, source=params.source, revision=None, tokens=0, layers=[], freed=freed
    )


def _entry(found: Published, layer: LoadedLayer, labels: str | None) -> DictionaryLayer:
    assert found.reads is not None
    return DictionaryLayer(
        layer=layer.layer,
        reads=found.reads.site,
        writes=found.writes,
        scale=layer.scale,
        features=layer.features,
        nbytes=layer.nbytes,
        labels=labels,
    )


def _calibrate(bench: Bench, name: str, found: Published, work: Workload) -> LoadedLayer:
    """Checks one dictionary on the texts.

    Raises:
        InvalidRequest: Its width is not that of the states.
    """
    model, place, out = bench.model, found.reads, found.writes
    assert place is not None
    states = read_all(model, work, list(dict.fromkeys([place, *([out] if out else [])])))
    read, written = states[place], states[out or place]
    made = bench.dictionaries.load(name, found, None)
    scale = None
    if made.normalization == "expected_norm":
        scale = read.shape[1] ** 0.5 / float(read.norm(dim=-1).mean())
        bench.dictionaries.shelf.drop(name)
        made = bench.dictionaries.load(name, found, scale)
    for at, width, own in (
        (place, read.shape[1], made.encoder.shape[1]),
        (out or place, written.shape[1], made.decoder.shape[1]),
    ):
        if width != own:
            raise InvalidRequest(
                f"{found.name} is for states of width {own}, and those at the {at} of {bench.handle} have {width}.",
                "It is of another model or another site.",
            )
    fit, back = measure_fit(made, read, written)
    cross = bool(found.decoders)  # what a layer gets from those before it is not in it
    faults = [] if cross else fit.faults(found.declared_l0)
    others = [] if cross or place.layer is None else compare_places(model, work, made, place, out)
    better = find_better(others, place, out)
    losses = (
        None
        if cross or (out or place).site == "residual_mid_normalized"
        else measure_losses(model, work, out or place, back)
    )
    return LoadedLayer(
        layer=place.layer,
        layout=found.layout,
        activation=made.activation.name,
        features=made.latents,
        trained_on=found.trained_on,
        declared_l0=found.declared_l0,
        fit=_told(place, out, None if cross else fit, fit.l0),
        silent=fit.silent,
        nbytes=made.nbytes,
        loss=losses and losses.clean,
        spliced=losses and losses.spliced,
        zeroed=losses and losses.zeroed,
        recovered=losses and losses.recovered,
        scale=scale,
        faults=faults,
        here=next((one.fit.fvu for one in others if (one.place, one.out) == (place, out)), None),
        better=better is not None,
        elsewhere=[_candidate(one) for one in list_others(model, others, place, out)][:_ELSEWHERE],
    )


def _candidate(found: Candidate) -> FeatureFit:
    return _told(found.place, found.out, found.fit, found.fit.l0)


def _told(place: FeaturePlace, out: FeaturePlace | None, fit: Reconstructed | None, l0: float) -> FeatureFit:
    where = str(place) if out is None else f"{place}, to {out.site}"
    return FeatureFit(place=where, l0=l0, fvu=fit and fit.fvu, cosine=fit and fit.cosine)
