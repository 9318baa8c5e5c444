"""`fit_lens` in the worker."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.calibration_texts import TEXTS
from nnterp_mcp.experiments.logit_lens import LensReadings, read_lens
from nnterp_mcp.experiments.translated_lens.jacobian import JacobianSums, fit_jacobian, hash_prompt
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation, Provenance, hash_unembedding
from nnterp_mcp.experiments.translated_lens.tuned import TunedSums, fit_tuned
from nnterp_mcp.formatting import plural, ranges
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.request.lenses import LensCard, LensMethod
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.toolset.fit_lens.params import FitLensParams
from nnterp_mcp.toolset.fit_lens.result import FitLensResult, LensFit
from nnterp_mcp.worker.job import Finished, Job
from nnterp_mcp.worker.lenses import (
    MOST_SUMS,
    find_lens,
    read_saved_lens,
    read_saved_sums,
    save_named_lens,
    save_named_sums,
)

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

Sums = JacobianSums | TunedSums

_SAVED_EVERY = 10.0
"""Seconds between two saves of a tuned lens's sums, which are large."""

_EVERY = 29
"""One of so many tokens of the built-in texts is read."""


def run(bench: Bench, params: FitLensParams, job: Job) -> FitLensResult:
    """Fits the lens, saves it, and reads built-in texts with it."""
    model = bench.model
    model.require("lens")
    prompts = bench.encode([item.prompt for item in bench.read_prompts(params.prompts)])
    asked = resolve_layers(params.layers, model.num_layers, bench.handle)
    layers = [layer for layer in asked if layer < model.num_layers - 1]
    if not layers:
        raise InvalidRequest("a lens translates the layers before the last, which is read as it is.")
    fit = (_fit_tuned if params.method == "tuned" else _fit_jacobian)(
        bench, params, job, bench.workload(prompts, (), job), layers
    )
    lens = read_saved_lens(bench, params.name)
    assert lens is not None
    checked, readings = _check(bench, lens, layers)
    return fit.model_copy(update={"checked": checked, "layers": readings})


def _fit_tuned(bench: Bench, params: FitLensParams, job: Job, work: Workload, layers: list[int]) -> FitLensResult:
    """Fits a tuned lens batch by batch; the sums of what is done are saved now and then, and at the end."""
    read = [number for number, prompt in enumerate(work.prompts) if len(prompt.ids) > params.skip_first]
    numbers = _by_hash(work, read or range(len(work.prompts)))  # the fit refuses prompts that are all too short
    start = _start(bench, params, layers, numbers.keys())
    assert not isinstance(start.sums, JacobianSums)
    sums, saved = start.sums, time.monotonic()

    def compute(group: Sequence[int]) -> list[int]:
        nonlocal sums, saved
        own = fit_tuned(bench.model, work.some(group), layers, skip=params.skip_first)
        sums = own if sums is None else sums + own
        if time.monotonic() - saved > _SAVED_EVERY:
            save_named_sums(bench, params.name, sums)
            saved = time.monotonic()
        return [*group]

    def assemble(done: Finished[int]) -> FitLensResult:
        assert sums is not None
        save_named_sums(bench, params.name, sums)
        save_named_lens(bench, params.name, sums.lens(_provenance(bench, params)))
        return _count(bench, params, start, done)

    pending = start.pending(numbers)
    groups = [[pending[at] for at in batch] for batch in work.some(pending).split(bench.model)] if pending else []
    return job.in_parts(groups, int, compute, assemble, "prompts", checkpoints=False)


def _fit_jacobian(bench: Bench, params: FitLensParams, job: Job, work: Workload, layers: list[int]) -> FitLensResult:
    """Fits a Jacobian lens prompt by prompt, and saves the lens of those that are done after each."""
    numbers = _by_hash(work, range(len(work.prompts)))
    start = _start(bench, params, layers, numbers.keys())
    assert not isinstance(start.sums, TunedSums)
    sums = start.sums
    save_named_sums(bench, params.name, None)
    if sums is not None:
        save_named_lens(bench, params.name, sums.lens(_provenance(bench, params)))

    def compute(group: Sequence[int]) -> list[int]:
        nonlocal sums
        own = fit_jacobian(bench.model, work.some(group), layers, skip=params.skip_first)
        sums = own if sums is None else sums + own
        save_named_lens(bench, params.name, sums.lens(_provenance(bench, params)))
        return [*group]

    pending = [[number] for number in start.pending(numbers)]
    return job.in_parts(pending, int, compute, partial(_count, bench, params, start), "prompts", checkpoints=False)


def _by_hash(work: Workload, chosen: Iterable[int]) -> dict[str, int]:
    """The prompts by their hashes: none counts twice."""
    numbers: dict[str, int] = {}
    for number in chosen:
        numbers.setdefault(hash_prompt(work.prompts[number]), number)
    return numbers


@dataclass(frozen=True)
class _Start:
    """The sums that a fit begins with.

    Attributes:
        sums: The sums; None if there are none.
        merged: The number of prompts of the lens that is merged.
        resumed: The number of prompts of this call that an earlier one fitted.
        replaced: Another lens of the name is lost.
    """

    sums: Sums | None
    merged: int = 0
    resumed: int = 0
    replaced: bool = False

    def pending(self, numbers: Mapping[str, int]) -> list[int]:
        """The prompts that are yet to be fitted, of all by their hashes."""
        known = () if self.sums is None else self.sums.hashes
        return [number for prompt, number in numbers.items() if prompt not in known]


def _start(bench: Bench, params: FitLensParams, layers: Sequence[int], prompts: Collection[str]) -> _Start:
    base = None if params.merge is None else _mergeable(bench, params, layers)
    merged = base.prompts if base is not None else 0
    own, skip = _saved_sums(bench, params.name, params.method)
    if own is not None and own.layers == list(layers):
        before = set(base.hashes) if base is not None else set[str]()
        added = set(own.hashes) - before
        complete = before <= set(own.hashes) and own.prompts - merged == len(added)
        if added and complete and added <= set(prompts) and skip == params.skip_first:
            return _Start(own, merged, len(added))
    replaced = params.name != params.merge and read_saved_lens(bench, params.name) is not None
    return _Start(base, merged, 0, replaced)


def _saved_sums(bench: Bench, name: str, method: LensMethod) -> tuple[Sums | None, int | None]:
    """The sums behind a saved lens of this method, and how many first tokens they leave out."""
    if method == "tuned":
        sums = read_saved_sums(bench, name)
        return sums, None if sums is None else sums.skip
    lens = read_saved_lens(bench, name)
    if lens is None or lens.method != method:
        return None, None
    return JacobianSums.of(lens), lens.provenance.skip


def _mergeable(bench: Bench, params: FitLensParams, layers: Sequence[int]) -> Sums:
    """The sums behind the lens that is merged.

    Raises:
        InvalidRequest: It is a lens of the other method, or of another model, other layers or other positions; or the
            sums of a tuned lens are not there.
    """
    found = find_lens(bench, params.merge or "")
    if found is None:
        raise InvalidRequest(f"{params.merge} is not fitted, so nothing can be added to it.", "Name a fitted lens.")
    lens, card = found
    lens.require(bench.model, lens.layers)
    if lens.method != params.method or lens.layers != list(layers):
        raise InvalidRequest(
            f"the {card} has layers {ranges(lens.layers)}, and cannot be merged with a {params.method} lens of layers "
            f"{ranges(layers)}.",
            "Fit the same layers by the same method.",
        )
    skip = lens.provenance.skip
    if skip is not None and skip != params.skip_first:
        raise InvalidRequest(
            f"the {card} leaves out the first {plural(skip, 'token')} of each text: give skip_first={skip}."
        )
    if params.method == "jacobian":
        return JacobianSums.of(lens)
    sums = read_saved_sums(bench, params.merge or "")
    if sums is None:
        raise InvalidRequest(
            f"the sums behind the {card} were not saved here: it comes from a file, or they take over "
            f"{MOST_SUMS >> 30} GB.",
            "Fit all prompts in one call.",
        )
    return sums


def _provenance(bench: Bench, params: FitLensParams) -> Provenance:
    return Provenance(model=bench.handle, unembedding=hash_unembedding(bench.model), skip=params.skip_first)


def _count(bench: Bench, params: FitLensParams, start: _Start, done: Finished[int]) -> FitLensResult:
    """The lens, and where its prompts come from."""
    prompts = start.merged + start.resumed + len(done.items)
    card = LensCard(name=params.name, method=params.method, prompts=prompts)
    return FitLensResult(
        model=bench.handle, card=card, merged=start.merged, resumed=start.resumed, replaced=start.replaced
    )


def _check(bench: Bench, lens: LensTranslation, layers: Sequence[int]) -> tuple[int, list[LensFit]]:
    """The number of tokens of built-in texts that the lens reads, and how."""
    model, most = bench.model, bench.longest_prompt()
    texts = [replace(text, ids=text.ids[:most]) for text in encode_prompts(model.tokenizer, TEXTS, bench.handle)]
    positions = [range(min(_EVERY, len(text.ids)) - 1, len(text.ids), _EVERY) for text in texts]
    work = Workload(texts, batch_tokens=bench.batch_tokens)
    found = read_lens(model, work, positions, [*layers, model.num_layers - 1], top_k=1, translation=lens)
    assert found.plain is not None
    answers = found.plain.readout.top_ids[:, -1, 0]
    own, plain = (_by_layer(each, answers) for each in (found, found.plain))
    return len(answers), [
        LensFit(layer=layer, kl=own[at][0], plain_kl=plain[at][0], agreement=own[at][1], plain_agreement=plain[at][1])
        for at, layer in enumerate(layers)
    ]


def _by_layer(readings: LensReadings, answers: Tensor) -> list[tuple[float, float]]:
    """The mean divergence, and how often the top token is the model's."""
    agreement = (readings.readout.top_ids[..., 0] == answers[:, None]).float().mean(0)
    return list(zip(readings.kl.mean(0).tolist(), agreement.tolist(), strict=True))
