"""The verdict's rule, and the effects that it judges."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nnterp_mcp.experiments.claims.effects import Evidence
from nnterp_mcp.experiments.claims.verdict import Criterion, Outcome, judge
from nnterp_mcp.experiments.statistics.bootstrap import Estimate

GAP = Estimate(2.0, 1.5, 2.5)
STRONG = Criterion("necessity", Estimate(0.6, 0.5, 0.7), [0.01] * 39, 0.1, decides=True)
WEAK = replace(STRONG, effect=Estimate(0.02, 0.01, 0.03))
USUAL = replace(STRONG, nulls=[0.7] * 3 + [0.0] * 36)
UNSURE = replace(STRONG, effect=Estimate(0.3, -0.1, 0.7))
OPPOSITE = replace(STRONG, effect=Estimate(-0.6, -0.7, -0.5))
FEW = replace(STRONG, nulls=[0.0] * 19)
FLAT = replace(STRONG, rank=0.4)
PUSHED = replace(STRONG, directions=[0.7] * 3 + [0.0] * 36)
ASIDE = replace(OPPOSITE, name="mean ablation", decides=False)


@pytest.mark.parametrize(
    ("criteria", "outcome", "reason"),
    [
        ([STRONG, replace(STRONG, name="sufficiency")], "supported", "none of 39 as large, p = 0.025"),
        ([STRONG, WEAK], "not supported", "too small"),
        ([STRONG, USUAL], "not supported", "no larger than in random components"),
        ([PUSHED], "not supported", "none of 39 and 3 of 39 as large"),
        ([replace(STRONG, directions=[0.0] * 5)], "inconclusive", "only 5 different random"),
        ([STRONG, UNSURE], "inconclusive", "includes zero"),
        ([STRONG, OPPOSITE], "not supported", "opposite sign"),
        ([FEW], "inconclusive", "19 different random components"),
        ([FLAT], "inconclusive", "does not rise with the strength"),
        ([STRONG, ASIDE], "inconclusive", "mean ablation, which does not decide"),
    ],
)
def test_a_claim_needs_every_deciding_criterion(criteria: list[Criterion], outcome: Outcome, reason: str) -> None:
    found = judge(GAP, 8, criteria)

    assert found.outcome == outcome
    assert reason in found.reasons[0]


@pytest.mark.parametrize(
    ("gap", "prompts", "reason"),
    [(GAP, 0, "No prompt is left"), (GAP, 3, "Only 3 prompts are left"), (Estimate(0.1, -0.2, 0.3), 8, "no behaviour")],
)
def test_nothing_is_decided_without_prompts_or_behaviour(gap: Estimate, prompts: int, reason: str) -> None:
    found = judge(gap, prompts, [STRONG])

    assert found.outcome == "inconclusive"
    assert reason in found.reasons[0]


def test_a_claim_that_is_tested_in_control_prompts_needs_enough_of_them() -> None:
    assert judge(None, 8, [STRONG], controls=4).outcome == "supported"
    assert judge(None, 8, [STRONG], controls=1).reasons[0].startswith("Only 1 control prompt is left")


def test_without_corrupted_prompts_effects_are_changes_of_the_metric() -> None:
    values = {
        "necessity": torch.tensor([[1.0, 2.9, 2.5], [2.0, 3.0, 2.0]]),
        "sufficiency": torch.tensor([[2.0, 0.5, 1.0]]),
    }
    values |= dict.fromkeys(("strength 0.25", "strength 0.5", "strength 0.75"), values["necessity"])
    baselines = torch.tensor([[3.0, 3.0], [3.0, 3.0]])
    found = Evidence(values, baselines, given=torch.tensor([0.5]), alone=True, directions=2)
    tests = {test.name: test for test in found.criteria()}

    assert found.gap is None
    assert tests["necessity"].effect.mean == pytest.approx(1.5)
    assert tests["necessity"].nulls == pytest.approx([0.05])
    assert tests["necessity"].directions == pytest.approx([0.75])
    assert tests["sufficiency"].effect.mean == pytest.approx(1.5)
    assert found.by_prompt("necessity") == pytest.approx([2.0, 1.0])
    assert found.by_prompt("sufficiency") is None


def evidence(sign: int = 1) -> Evidence:
    """Two prompts with a gap of 4 and 2; the claim's component carries three quarters of it, the random one nothing."""
    clean, corrupted = torch.tensor([[5.0], [3.0]]), torch.tensor([[1.0], [1.0]])
    values = {"sufficiency": torch.cat([corrupted + 0.75 * (clean - corrupted), corrupted], 1)}
    for name, share in (("necessity", 0.75), ("strength 0.5", 0.3), ("mean ablation", 0.6)):
        values[name] = torch.cat([clean - share * (clean - corrupted), clean], 1)
    values |= dict.fromkeys(("strength 0.25", "strength 0.75"), values["necessity"][:, :1] * 0 + clean)
    return Evidence(values, torch.cat([clean, corrupted], 1), sign=sign)


def test_effects_are_shares_of_the_mean_gap() -> None:
    tests = {test.name: test for test in evidence().criteria()}

    assert {name: round(test.effect.mean, 6) for name, test in tests.items()} == {
        "necessity": 0.75,
        "mean ablation": 0.6,
        "sufficiency": 0.75,
        "dose response": 0.3,
    }
    assert tests["necessity"].nulls == pytest.approx([0.0])
    assert tests["dose response"].rank == pytest.approx(0.67, abs=0.01)
    assert evidence().by_prompt("necessity") == pytest.approx([1.0, 0.5])


def test_a_claim_of_the_opposite_has_opposite_effects() -> None:
    effect = evidence(sign=-1).criteria()[0].effect

    assert effect.mean == pytest.approx(-0.75)
    assert effect.low is not None
    assert effect.high is not None
    assert effect.low <= effect.mean <= effect.high


def test_specificity_is_the_divergence_beyond_that_of_control_prompts() -> None:
    given = evidence()
    values = {**given.values, "divergence": torch.tensor([[0.9, 0.1], [0.7, 0.1]])}
    controls = torch.tensor([[0.1, 0.1], [0.1, 0.3]])
    found = Evidence(values, given.baselines, controls).criteria()[-1]

    assert found.name == "specificity"
    assert found.effect.mean == pytest.approx(0.7)
    assert found.nulls == pytest.approx([-0.1])
