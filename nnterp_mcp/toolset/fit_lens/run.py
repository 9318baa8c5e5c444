"""`fit_lens` in the worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.calibration_texts import TEXTS
from nnterp_mcp.experiments.logit_lens import LensReadings, read_lens
from nnterp_mcp.experiments.translated_lens.jacobian import JacobianSums, fit_jacobian
from nnterp_mcp.experiments.translated_lens.lens_files import read_lens_file
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation
from nnterp_mcp.experiments.translated_lens.tuned import fit_tuned
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.request.lenses import LensCard
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.toolset.fit_lens.params import FitLensParams
from nnterp_mcp.toolset.fit_lens.result import FitLensResult, LensFit
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.lenses import find_lens, keep_lens, lens_path

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_EVERY = 29
"""One of so many tokens of the built-in texts is read."""


def run(bench: Bench, params: FitLensParams, job: Job) -> FitLensResult:
    """Fits the lens, keeps it, and reads built-in texts with it."""
    model = bench.model
    model.require("lens")
    work = bench.workload(bench.encode(params.prompts), (), job)
    layers = [
        layer for layer in resolve_layers(params.layers, model.num_layers, bench.handle) if layer < model.num_layers - 1
    ]
    if not layers:
        raise InvalidRequest("a lens translates the layers before the last, which is read as it is.")
    replaced = lens_path(bench, params.name).exists()
    if params.method == "tuned":
        lens, merged = fit_tuned(model, work, layers, skip=params.skip_first).lens(), 0
        keep_lens(bench, params.name, lens)
    else:
        lens, merged = _fit_jacobian(bench, params, work, layers)
    checked, fits = _check(bench, lens, layers)
    return FitLensResult(
        model=bench.handle,
        card=LensCard(name=params.name, method=params.method, prompts=lens.provenance.prompts),
        replaced=replaced and params.name != params.merge,
        merged=merged,
        tokens=sum(len(prompt.ids) for prompt in work.prompts),
        checked=checked,
        layers=fits,
    )


def _fit_jacobian(
    bench: Bench, params: FitLensParams, work: Workload, layers: Sequence[int]
) -> tuple[LensTranslation, int]:
    """The lens and how many prompts were merged into it; what is done is kept after every prompt."""
    former = None if params.merge is None else _former(bench, params.merge, layers)

    def merged(sums: JacobianSums) -> LensTranslation:
        return (sums if former is None else former + sums).lens()

    def keep(sums: JacobianSums) -> None:
        keep_lens(bench, params.name, merged(sums))

    sums = fit_jacobian(bench.model, work, layers, skip=params.skip_first, keep=keep)
    return merged(sums), 0 if former is None else former.prompts


def _former(bench: Bench, name: str, layers: Sequence[int]) -> JacobianSums:
    """The sums behind a Jacobian lens that was fitted here.

    Raises:
        InvalidRequest: There is none, or it has other layers.
    """
    path = lens_path(bench, name)
    if not path.exists():
        find_lens(bench, name)  # says which ones there are
    lens = read_lens_file(path)
    lens.require(bench.model, layers)
    if lens.method != "jacobian" or lens.layers != list(layers):
        raise InvalidRequest(
            f"the lens {name!r} is a {lens.method} lens of layers {', '.join(map(str, lens.layers))}, and cannot be "
            "merged with a Jacobian lens of other layers.",
            "Fit the same layers.",
        )
    return JacobianSums.of(lens)


def _check(bench: Bench, lens: LensTranslation, layers: Sequence[int]) -> tuple[int, list[LensFit]]:
    """The number of tokens of built-in texts that the lens reads, and how."""
    model, most = bench.model, bench.longest_prompt()
    texts = [replace(text, ids=text.ids[:most]) for text in encode_prompts(model.tokenizer, TEXTS, bench.handle)]
    positions = [range(min(_EVERY, len(text.ids)) - 1, len(text.ids), _EVERY) for text in texts]
    work = Workload(texts, batch_tokens=bench.batch_tokens)
    last = model.num_layers - 1
    found = read_lens(model, work, positions, sorted({*layers, last}), top_k=1, translation=lens)
    assert found.plain is not None
    answers = found.plain.readout.top_ids[:, -1, 0]
    own, plain = (_by_layer(each, answers) for each in (found, found.plain))
    fits = [
        LensFit(layer=layer, kl=own[at][0], plain_kl=plain[at][0], agreement=own[at][1], plain_agreement=plain[at][1])
        for at, layer in enumerate(found.layers)
        if layer in layers
    ]
    return len(answers), fits


def _by_layer(readings: LensReadings, answers: Tensor) -> list[tuple[float, float]]:
    """The mean divergence, and how often the top token is the model's."""
    agreement = (readings.readout.top_ids[..., 0] == answers[:, None]).float().mean(0)
    return list(zip(readings.kl.mean(0).tolist(), agreement.tolist(), strict=True))
