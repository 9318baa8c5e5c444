"""Jacobians of a fit against `torch.autograd.functional.jacobian` of plain transformers, prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, NnterpError
from nnterp_mcp.experiments.translated_lens.jacobian import fit_jacobian
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from tests.engine.plain import FAMILIES
from tests.engine.test_executors import Subject, build

SKIP = 2


@pytest.fixture(scope="module", params=[family for family in FAMILIES if family != "smollm2-135m"])
def subject(request: pytest.FixtureRequest) -> Subject:
    return build(request.param, Path)


@pytest.fixture(scope="module")
def llama() -> Subject:
    return build("llama", Path)


def prompts(subject: Subject, *lengths: int) -> list[EncodedPrompt]:
    source = torch.Generator().manual_seed(0)
    return [
        EncodedPrompt(at, "", torch.randint(5, subject.model.vocab_size, (length,), generator=source).tolist(), [])
        for at, length in enumerate(lengths)
    ]


def plain_jacobian(subject: Subject, ids: list[int], layer: int) -> Tensor:
    """The mean over positions of the slopes of the final states, added up over positions."""
    last, counted = len(subject.plain.layers) - 1, slice(SKIP, len(ids) - 1)

    def final(states: Tensor) -> Tensor:
        found: list[Tensor] = []
        edits: dict[tuple[str, int], Callable[[Tensor], object]] = {("layers_output", last): found.append}
        edits[("layers_output", layer)] = lambda own: own.copy_(states) if layer < last else found.append(states)
        with subject.plain._hooked(edits):  # pyright: ignore
            subject.plain.model(torch.tensor([ids]), use_cache=False)
        return found[0][counted].sum(0)

    whole: Tensor = torch.autograd.functional.jacobian(final, subject.plain.read(ids, "layers_output", layer))  # pyright: ignore
    return whole[:, counted].mean(1)


def test_a_fit_is_the_mean_of_plain_jacobians(subject: Subject) -> None:
    texts, layers = prompts(subject, 9, 6), [*range(subject.model.num_layers)]

    lens = fit_jacobian(subject.model, Workload(texts), layers, skip=SKIP).lens()

    for layer in layers[:-1]:
        wanted = torch.stack([plain_jacobian(subject, prompt.ids, layer) for prompt in texts]).mean(0)
        assert (lens.matrices[layer] - wanted).abs().max() < 2e-6 * wanted.abs().max()
    assert torch.equal(lens.matrices[layers[-1]], torch.eye(subject.model.hidden_size))


def test_copies_of_a_prompt_share_its_forward_pass_whatever_their_number(llama: Subject) -> None:
    texts = prompts(llama, 8)
    whole = fit_jacobian(llama.model, Workload(texts), [0, 2], skip=SKIP).total

    for tokens in (8, 24, 56):
        found = fit_jacobian(llama.model, Workload(texts, batch_tokens=tokens), [0, 2], skip=SKIP).total
        assert (found - whole).abs().max() < 1e-6


def test_merged_fits_are_one_fit(llama: Subject) -> None:
    texts = prompts(llama, 8, 7, 9)
    whole = fit_jacobian(llama.model, Workload(texts), [1], skip=SKIP)
    parts = [fit_jacobian(llama.model, Workload(some), [1], skip=SKIP) for some in (texts[:1], texts[1:])]

    merged = parts[0] + parts[1]

    assert merged.prompts == whole.prompts == 3
    assert torch.equal(merged.lens().matrices[1], whole.lens().matrices[1])
    with pytest.raises(InvalidRequest, match="the same layers"):
        _ = merged + fit_jacobian(llama.model, Workload(texts[:1]), [2], skip=SKIP)


def test_a_short_prompt_is_refused(llama: Subject) -> None:
    with pytest.raises(InvalidRequest, match="prompt 0 has 10 tokens and needs 18"):
        fit_jacobian(llama.model, Workload(prompts(llama, 10)), [0])


def test_a_fit_reports_rows_and_can_be_ended(llama: Subject) -> None:
    told: list[tuple[int, int | None]] = []

    def report(done: int, total: int | None, unit: str) -> None:
        told.append((done, total))
        if len(told) == 2:
            raise NnterpError("ended")

    with pytest.raises(NnterpError, match="ended"):
        fit_jacobian(llama.model, Workload(prompts(llama, 8, 8), batch_tokens=64, progress=report), [0], skip=SKIP)
    assert told == [(8, 128), (16, 128)]
