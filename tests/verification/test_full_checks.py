"""Every capability on a sample of architectures, and on all of them, against plain transformers with plain hooks."""

from __future__ import annotations

import json
import os

import pytest
import torch

from nnterp_mcp.model import unembedding as vocabulary
from nnterp_mcp.verification.census import (
    check_all_types,
    check_type,
    render_classes,
    render_table,
    totals,
    verified_classes,
    worst_lens,
)
from nnterp_mcp.verification.full_checks import CAPABILITIES, check_thoroughly
from tests.model.families import SAMPLE, fresh

MISSING = {
    "diffllama": set(),
    "mamba": {"attention", "attention_edit", "heads"},
    "bart": {"batch_left"},
    "roberta": {"as_generate"},
}
"""What a type of the sample lacks; nothing where it is not listed."""


OFTEN = ("gpt2", "llama", "qwen3_next", "gemma2", "mamba", "bart", "roberta", "gpt_oss")
"""Those that the default run goes over; the rest come with the slow one."""


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in SAMPLE]
)
def test_offers_what_the_type_can_do_and_nothing_wrong(model_type: str) -> None:
    report = check_thoroughly(fresh(model_type, check_renaming=False))
    assert report.wrong == (), report.reason()
    assert {check.name for check in report.checks} == set(CAPABILITIES)
    missing = {check.name for check in report.checks if not check.passed}
    assert missing == MISSING.get(model_type, set()), report.reason()
    assert report.lens_difference is not None
    assert report.lens_difference < 1e-5


def test_notices_a_lens_without_its_softcap(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("gemma2", check_renaming=False)
    norm, head = model.anatomy.ln_final, model.anatomy.lm_head
    assert norm is not None
    assert head is not None
    monkeypatch.setattr(vocabulary, "replay_tail", lambda plain, anatomy, rows: head.module(norm.module(rows)))
    report = check_thoroughly(model)
    assert not report.passed("lens")
    assert report.passed("names")
    with pytest.raises(NotImplementedError, match="lens differs from the logits"), torch.no_grad():
        model.project_on_vocab(torch.randn(model.hidden_size))


def test_notices_attention_read_from_another_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnterp_mcp.model.attention import AttentionProbabilities

    model = fresh("llama", check_renaming=False)
    place = AttentionProbabilities._place
    monkeypatch.setattr(AttentionProbabilities, "_place", lambda self, layer: place(self, 3 - layer if layer else 0))
    report = check_thoroughly(model)
    assert "attention_edit" in report.wrong


@pytest.mark.slow
def test_says_why_a_type_cannot_be_read() -> None:
    reports = [check_type(name) for name in ("gemma3n_text", "hrm_text", "musicgen", "gemma4_assistant")]
    assert not any(report.passed(name) for report in reports for name in ("names", "lens", "attention"))
    reasons = [report.reason() for report in reports]
    for reason, words in zip(reasons, ("4 residual streams", "run 2 times", "token embedding", "drafts"), strict=True):
        assert words in reason


@pytest.mark.slow
def test_census_runs_side_by_side_and_counts() -> None:
    seen: list[str] = []
    reports = check_all_types(jobs=1, types=["gpt2", "mamba"], on_report=lambda report: seen.append(report.name))
    assert seen == ["gpt2", "mamba"]
    counts = totals(reports)
    assert (counts["types"], counts["names"], counts["attention"], counts["wrong"]) == (2, 2, 1, 0)
    assert (counts["generation"], counts["causal"], counts["switches"]) == (2, 2, 0)
    table = render_table(reports)
    assert "| gpt2 | ✓ | ✓ | ✓ |" in table
    assert "| mamba | ✓ | ✓ |  |" in table
    assert "forms attention probabilities" in table


@pytest.mark.slow
def test_census_of_all_types() -> None:
    reports = check_all_types(jobs=min(os.cpu_count() or 1, 8))
    counts = totals(reports)
    assert [report.name for report in reports if report.wrong] == []
    assert worst_lens(reports) < 1e-5
    least = {"types": 189, "names": 172, "lens": 172, "attention": 165, "attention_edit": 160, "batch_right": 170}
    least |= {"causal": 180, "lengths": 180, "generation": 180, "as_generate": 170, "switches": 100}
    assert {name: counts[name] for name in least if counts[name] < least[name]} == {}
    assert set(json.loads(render_classes(reports))["classes"]) == verified_classes()
