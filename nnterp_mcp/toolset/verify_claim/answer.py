"""From the test of a claim to an answer: the verdict, its reasons, and a row for each test."""

from __future__ import annotations

from nnterp_mcp.contract import Measured
from nnterp_mcp.formatting import brief, elided, number, plural, quoted
from nnterp_mcp.render import in_force, left_out, shared_tokens
from nnterp_mcp.table import Column, Kind, Table, tabulate
from nnterp_mcp.toolset.verify_claim.result import ClaimCriterion, DoseEffect, VerifyClaimAnswer, VerifyClaimResult

_REASONS = 4
"""Reasons that an answer gives."""


def digest(result: VerifyClaimResult) -> VerifyClaimAnswer:
    """The verdict with its reasons, every test, and the dose response."""
    hidden = len(result.nulls) + len(result.prompts)
    reasons = " ".join(map(_sentence, result.reasons[:_REASONS]))
    return VerifyClaimAnswer(
        finding=f"{result.outcome.capitalize()}: {_claim(result)}. {reasons}",
        notes=_notes(result),
        model=result.model,
        verdict=result.outcome,
        total=len(result.criteria),
        truncated=hidden > 0,
        table=_tests(result),
        by_layer={},
        doses=_doses(result),
    )


def _sentence(reason: str) -> str:
    return reason[:1].upper() + reason[1:]


def _claim(result: VerifyClaimResult) -> str:
    """The claim as a sentence."""
    component, several = result.component or "the claimed component", len(result.parts) > 1
    said = {
        "drives": f"{'drive' if several else 'drives'}",
        "opposes": f"{'oppose' if several else 'opposes'}",
        "necessary": f"{'are' if several else 'is'} necessary for",
        "sufficient": f"{'are' if several else 'is'} sufficient for",
    }[result.predicts]
    return f"{component} of {result.model} {said} {_metric(result)}"


def _metric(result: VerifyClaimResult) -> str:
    names = [quoted(elided(name)) for name in result.categories][:2]
    if result.metric == "logit_difference":
        return f"the logit difference {' − '.join(names)}"
    return (
        f"the log-probability of {names[0]}" if result.metric == "log_probability" and names else "what clean runs say"
    )


def _tests(result: VerifyClaimResult) -> Table:
    columns: list[Column[ClaimCriterion]] = [
        Column("test", lambda one: one.criterion),
        Column("effect", lambda one: one.effect.mean, Kind.BRIEF),
        Column("95 %", lambda one: one.effect, Kind.INTERVAL, len(result.prompts) > 1),
        Column("random 95th", lambda one: one.null_95, Kind.BRIEF),
        Column("as far 95th", lambda one: one.direction_95, Kind.BRIEF, result.directions > 0),
        Column("p", lambda one: one.p, Kind.BRIEF),
        Column("holds", lambda one: one.holds),
        Column("decides", lambda one: one.decides),
    ]
    return tabulate(columns, result.criteria)


def _doses(result: VerifyClaimResult) -> Table | None:
    if not result.doses:
        return None
    columns: list[Column[DoseEffect]] = [
        Column("strength", lambda dose: dose.strength),
        Column("effect", lambda dose: dose.effect.mean, Kind.BRIEF),
    ]
    return tabulate(columns, result.doses)


def _notes(result: VerifyClaimResult) -> list[str]:
    notes = [_split(result)]
    if result.criteria:
        notes.append(f"Effects are {_unit(result)}, positive as predicted; p against {_controls(result)}.")
    notes += [f"Not measured: {reason}." for reason in result.unmeasured if result.criteria]
    if result.criteria and not result.control:
        notes.append("Without control_prompts, specificity is not tested.")
    if result.lost:
        notes.append(f"Not left out: the prompts of {', '.join(result.lost[:3])}, deleted, which made a vector.")
    notes += in_force(result.in_force)
    notes += shared_tokens(result.shared)
    notes += left_out(len(result.nulls), "random component", "nulls")
    return notes


def _unit(result: VerifyClaimResult) -> str:
    """The unit of the effects, and what they are the effects of where no run is exchanged for another."""
    if not result.alone:
        specificity = " (specificity: nats)" if result.control else ""
        return f"shares of the gap {number(brief(_gap(result)))}{specificity}"
    unit = "logits" if result.metric == "logit_difference" else "nats"
    ablated = "of the component set to zero"
    given = "; sufficiency of the prompts' mean of it in control prompts" if result.control else ""
    return f"{unit} {ablated}{given}"


def _controls(result: VerifyClaimResult) -> str:
    """The random components, and the directions of equal norm."""
    random = len(result.nulls) - result.directions
    as_far = f" and {result.directions} random directions moved along as far" if result.directions else ""
    return f"{random} {'' if 'matched' in result.kind else 'random '}{_plural(result.kind)}{as_far}"


def _plural(kind: str) -> str:
    noun, _, rest = kind.partition(" ")
    return f"{noun}s {rest}"


def _split(result: VerifyClaimResult) -> str:
    used = (
        f", {result.left_out} left out because a prompt of the pair served to find the claim" if result.left_out else ""
    )
    controls = f", with {plural(result.control, 'control prompt')}" if result.alone and result.control else ""
    runs = f"corrupted runs: {result.corruption or 'none'}"
    return f"Tested on {plural(len(result.prompts), 'prompt')}{controls}{used}; {runs}."


def _gap(result: VerifyClaimResult) -> float:
    gap = result.gap or Measured(mean=0.0)
    return gap.mean
