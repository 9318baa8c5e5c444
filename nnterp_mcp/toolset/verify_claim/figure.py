"""The test of a claim as a picture: its effects next to those of random components, and the dose response."""

from __future__ import annotations

from nnterp_mcp.display.figure import Arrays, Bar, Bars, Curve, Curves, Figure, Panel
from nnterp_mcp.formatting import plural
from nnterp_mcp.toolset.verify_claim.result import ClaimCriterion, VerifyClaimResult

_RANDOM = 20
"""Random components that are drawn, the largest effects."""


def figure(result: VerifyClaimResult, arrays: Arrays) -> Figure:
    """A panel for each test, with the claim first; then the effect by strength."""
    panels: list[Panel] = [_panel(one, result) for one in result.criteria]
    if result.doses:
        strengths = [0.0, *(dose.strength for dose in result.doses)]
        effects = [0.0, *(dose.effect.mean for dose in result.doses)]
        panels.append(Curves("dose response", "strength", "share of the gap", [Curve("claim", strengths, effects)]))
    return Figure(
        title=f"Claim {result.outcome} · {result.component} · {result.model}",
        subtitle=f"{plural(len(result.prompts), 'held-out prompt')}; {plural(len(result.nulls), 'random component')}",
        panels=panels,
        columns=2,
        notes=result.reasons,
    )


def _panel(one: ClaimCriterion, result: VerifyClaimResult) -> Bars:
    bars = [Bar("claim", one.effect.mean, one.effect.low, one.effect.high)]
    effects = sorted((null.effects[one.criterion] for null in result.nulls), reverse=True)
    bars += [Bar(f"random {at + 1}", effect, role="control") for at, effect in enumerate(effects[:_RANDOM])]
    unit = "nats" if one.criterion == "specificity" else "share of the gap"
    return Bars(f"{one.criterion} (p = {one.p:.2g})", unit, bars, signed=True)
