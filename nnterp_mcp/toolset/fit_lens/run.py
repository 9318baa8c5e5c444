"""`fit_lens` in the worker."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.calibration_texts import TEXTS
from nnterp_mcp.experiments.logit_lens import LensReadings, read_lens
from nnterp_mcp.experiments.translated_lens.jacobian import JacobianSums, fit_jacobian, hash_prompt
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation, Provenance, hash_unembedding
from nnterp_mcp.experiments.translated_lens.tuned import fit_tuned
from nnterp_mcp.formatting import plural, ranges
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.request.lenses import LensCard
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.toolset.fit_lens.params import FitLensParams
from nnterp_mcp.toolset.fit_lens.result import FitLensResult, LensFit
from nnterp_mcp.worker.job import Finished, Job
from nnterp_mcp.worker.lenses import find_lens, read_saved_lens, save_named_lens

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

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
    """Fits a tuned lens in one piece."""
    replaced = read_saved_lens(bench, params.name) is not None
    lens = fit_tuned(bench.model, work, layers, skip=params.skip_first).lens(_provenance(bench, params))
    save_named_lens(bench, params.name, lens)
    return _result(bench, params, len(work.prompts), replaced=replaced)


def _fit_jacobian(bench: Bench, params: FitLensParams, job: Job, work: Workload, layers: list[int]) -> FitLensResult:
    """Fits a Jacobian lens prompt by prompt, and saves the lens of those that are done after each."""
    numbers: dict[str, int] = {}
    for number, prompt in enumerate(work.prompts):
        numbers.setdefault(hash_prompt(prompt), number)
    start = _start(bench, params, layers, numbers.keys())
    sums = start.sums
    if sums is not None:
        save_named_lens(bench, params.name, sums.lens(_provenance(bench, params)))

    def compute(group: Sequence[int]) -> list[int]:
        nonlocal sums
        own = fit_jacobian(bench.model, work.some(group), layers, skip=params.skip_first)
        sums = own if sums is None else sums + own
        save_named_lens(bench, params.name, sums.lens(_provenance(bench, params)))
        return [*group]

    def assemble(done: Finished[int]) -> FitLensResult:
        count = start.merged + start.resumed + len(done.items)
        return _result(bench, params, count, replaced=start.replaced, merged=start.merged, resumed=start.resumed)

    known = () if sums is None else sums.hashes
    pending = [[number] for prompt, number in numbers.items() if prompt not in known]
    return job.in_parts(pending, int, compute, assemble, "prompts", checkpoints=False)


@dataclass(frozen=True)
class _Start:
    """The Jacobians that a fit begins with.

    Attributes:
        sums: The Jacobians; None if there are none.
        merged: The number of prompts of the lens that is merged.
        resumed: The number of prompts of this call that an earlier one fitted.
        replaced: Another lens of the name is lost.
    """

    sums: JacobianSums | None
    merged: int = 0
    resumed: int = 0
    replaced: bool = False


def _start(bench: Bench, params: FitLensParams, layers: Sequence[int], prompts: Collection[str]) -> _Start:
    base = None if params.merge is None else _mergeable(bench, params, layers)
    merged = base.prompts if base is not None else 0
    saved = read_saved_lens(bench, params.name)
    if saved is not None and saved.method == "jacobian" and saved.layers == list(layers):
        own, before = JacobianSums.of(saved), set(base.hashes) if base is not None else set[str]()
        added = set(own.hashes) - before
        complete = before <= set(own.hashes) and own.prompts - merged == len(added)
        if added and complete and added <= set(prompts) and saved.provenance.skip == params.skip_first:
            return _Start(own, merged, len(added))
    return _Start(base, merged, 0, saved is not None and params.name != params.merge)


def _mergeable(bench: Bench, params: FitLensParams, layers: Sequence[int]) -> JacobianSums:
    """The sums behind the lens that is merged.

    Raises:
        InvalidRequest: It is no Jacobian lens, or of another model, other layers or other positions.
    """
    found = find_lens(bench, params.merge or "")
    if found is None:
        raise InvalidRequest(f"{params.merge} is not fitted, so nothing can be added to it.", "Name a Jacobian lens.")
    lens, card = found
    lens.require(bench.model, lens.layers)
    if lens.method != "jacobian" or lens.layers != list(layers):
        raise InvalidRequest(
            f"the {card} has layers {ranges(lens.layers)}, and cannot be merged with a Jacobian lens of layers "
            f"{ranges(layers)}.",
            "Fit the same layers of a Jacobian lens.",
        )
    skip = lens.provenance.skip
    if skip is not None and skip != params.skip_first:
        raise InvalidRequest(
            f"the {card} leaves out the first {plural(skip, 'token')} of each text: give skip_first={skip}."
        )
    return JacobianSums.of(lens)


def _provenance(bench: Bench, params: FitLensParams) -> Provenance:
    return Provenance(model=bench.handle, unembedding=hash_unembedding(bench.model), skip=params.skip_first)


def _result(bench: Bench, params: FitLensParams, prompts: int, **facts: Any) -> FitLensResult:
    card = LensCard(name=params.name, method=params.method, prompts=prompts)
    return FitLensResult(model=bench.handle, card=card, **facts)


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
