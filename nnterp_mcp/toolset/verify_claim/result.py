"""Result and answer of `verify_claim`."""

from __future__ import annotations

from pydantic import Field

from nnterp_mcp.contract import Measured, Result, ResultPart, TableAnswer
from nnterp_mcp.table import TableField


class ClaimCriterion(ResultPart):
    """One test of the claim.

    Attributes:
        criterion: Its name.
        effect: The effect, positive where it is as predicted; a share of the gap, of specificity nats.
        null_95: The 95th percentile of the effects of random components; None without any.
        direction_95: That of moves as far along random directions; None where there is no such control.
        p: (1 + random components with at least as large an effect) / (1 + their number); of two controls the larger.
        holds: The effect is sure, large enough, and larger than those of random components.
        decides: The verdict requires it.
        rank: The rank correlation of strength and effect, of the dose response.
    """

    criterion: str
    effect: Measured
    null_95: float | None
    direction_95: float | None = None
    p: float
    holds: bool
    decides: bool
    rank: float | None = None


class DoseEffect(ResultPart):
    """The effect of exchanging a part of the claim's states."""

    strength: float
    effect: Measured


class RandomComponent(ResultPart):
    """A random component, and its effect in each test."""

    component: str
    effects: dict[str, float]


class HeldOutPrompt(ResultPart):
    """A prompt of the test, with its own effects as shares of the mean gap.

    Attributes:
        prompt: Its place among the clean prompts of the call.
        text: The prompt.
        clean: The metric of its clean run.
        corrupted: That of its corrupted run; None without one.
        necessity: The effect of the exchange in the clean run; None where clean and corrupted do not differ.
        sufficiency: That in the corrupted run; None without one.
    """

    prompt: int
    text: str
    clean: float
    corrupted: float | None
    necessity: float | None
    sufficiency: float | None


class VerifyClaimResult(Result):
    """The verdict, every test, and what it rests on.

    Attributes:
        model: The model's handle.
        component: The claim's component, in words.
        parts: Its parts.
        predicts: The predicted role of the component.
        metric: The metric.
        categories: The target tokens of the first prompt, by category.
        shared: The tokens that categories share, under `a and b`.
        corruption: The origin of the corrupted runs, in words.
        outcome: The verdict.
        reasons: The reasons, the most important one first.
        left_out: Pairs of which a prompt served to find the claim.
        gap: The metric of clean less that of corrupted runs.
        kind: One of the random components, in words.
        unmeasured: Tests that could not be made, each with why.
        criteria: The criteria.
        doses: The dose response.
        prompts: The prompts of the test.
        control: Control prompts.
        alone: The prompts have no corrupted ones: effects are in the metric's unit.
        directions: Random directions along which states move as far as they do for the claim.
        in_force: Active interventions.
        lost: Runs that a vector was made from and that were deleted: their prompts are not known.
        nulls: The random components, then the random directions.
        runs: Runs of the model with a component exchanged.
    """

    model: str
    component: str
    parts: list[str]
    predicts: str
    metric: str
    categories: dict[str, list[str]]
    shared: dict[str, list[str]] = Field(default_factory=dict)
    corruption: str
    outcome: str
    reasons: list[str]
    left_out: int
    gap: Measured | None
    kind: str
    unmeasured: list[str] = Field(default_factory=list)
    criteria: list[ClaimCriterion]
    doses: list[DoseEffect]
    prompts: list[HeldOutPrompt]
    control: int
    alone: bool = False
    directions: int = 0
    in_force: list[str] = Field(default_factory=list)
    lost: list[str] = Field(default_factory=list)
    nulls: list[RandomComponent]
    runs: int


class VerifyClaimAnswer(TableAnswer):
    """The verdict with its reasons, the tests, and the dose response."""

    verdict: str
    doses: TableField | None = None
