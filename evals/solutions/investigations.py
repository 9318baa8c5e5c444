"""Investigations of several steps on smollm2-135m, by the tools."""

from __future__ import annotations

from typing import Any

from evals.question import Value
from evals.questions.investigations import (
    CAPITALS,
    CIRCUIT,
    CLEAN,
    CORRUPTED,
    COUNTRY,
    DIRECT,
    EARLY,
    GIVEN,
    INDIRECT,
    INDIRECT_AT,
    LATE,
    MEDIATED,
    MEDIATED_WORDS,
    MIDDLE,
    OPPOSES,
    RIVALS,
    SEARCHED,
    SUBJECT,
    SUPPORTS,
    TOLD,
    UNTOLD,
    place_of,
)
from evals.solutions.rows import Row, rows
from evals.tools import Tools

_NAMES = {"answer": INDIRECT, "wrong": SUBJECT}
_CAPITALS = {"answer": CAPITALS[0], "wrong": CAPITALS[1]}
_ABLATED: dict[str, Any] = {"clean": GIVEN, "corrupted": {"ablate": "zero"}, "targets": _NAMES}


async def _without(tools: Tools, head: str) -> float:
    """The change of the logit difference without a head."""
    layer, number = place_of(head)
    found = await tools.call("patch_activations", **_ABLATED, layers=layer, heads=number)
    return rows(found)[0]["logit_difference"] - found["clean"]


async def suppressing_head(tools: Tools) -> Value:
    """A grid, whose largest effect of the other sign is in its run."""
    layers = f"{SEARCHED.start}:{SEARCHED.stop}"
    found = await tools.call("patch_activations", **_ABLATED, layers=layers, heads="all")
    columns = ["layer", "head", "effect"]
    cells: list[Row] = []
    for offset in (0, 60):
        page = await tools.call(
            "read_run", run_id=found["run_id"], part="cells", columns=columns, offset=offset, limit=60
        )
        cells += rows(page)
    most = max(cells, key=lambda row: row["effect"])
    return {"head": f"L{most['layer']}H{most['head']}", "raised": most["effect"]}


async def headline_head(tools: Tools) -> Value:
    """Attention first, then what the head does."""
    told = await tools.call(
        "attention_probs", prompts=GIVEN, query_positions="last", layers=f"{SEARCHED.start}:{SEARCHED.stop}"
    )
    found = [
        (probability, row["head"])
        for row in rows(told)
        for _, position, probability in row["attends to: token, at, p"]
        if position == INDIRECT_AT
    ]
    probability, head = max(found)
    change = await _without(tools, head)
    return {
        "head": head,
        "probability": probability,
        "change": change,
        "verdict": SUPPORTS if change < 0 else OPPOSES,
    }


async def complement(tools: Tools) -> Value:
    """One call."""
    found = await tools.call(
        "patch_activations",
        clean=list(TOLD),
        corrupted={"ablate": "mean", "over": list(UNTOLD)},
        targets=[{"answer": one, "wrong": other} for one, other in TOLD.values()],
        cells=list(CIRCUIT),
        complement=True,
    )
    shown = {row["of the set"]: row["value"] for row in rows(found)}
    carried = shown["completeness"] > 0.5
    return {
        "faithfulness": shown["faithfulness"],
        "completeness": shown["completeness"],
        "verdict": "the other heads carry it too" if carried else "the other heads do not carry it",
    }


async def rivals(tools: Tools) -> Value:
    """Each set together."""
    changes: dict[str, float] = {}
    for name, heads in RIVALS.items():
        found = await tools.call("patch_activations", **_ABLATED, cells=list(heads))
        changes[name] = rows(found)[0]["value"] - found["clean"]
    return {**changes, "verdict": max(changes, key=lambda name: abs(changes[name]))}


async def mediated(tools: Tools) -> Value:
    """Direct attribution beside ablation."""
    layer, head = place_of(MEDIATED)
    told = await tools.call("attribute", prompts=GIVEN, targets=_NAMES, layers=layer, top_k=20)
    direct = next(row["logit_difference"] for row in rows(told) if row["part"] == f"L{layer}H{head}")
    change = await _without(tools, MEDIATED)
    return {"direct": direct, "change": change, "verdict": DIRECT if abs(direct) > abs(change) / 2 else MEDIATED_WORDS}


async def carrier(tools: Tools) -> Value:
    """Two cells."""
    found = await tools.call(
        "patch_activations",
        clean=CLEAN,
        corrupted=CORRUPTED,
        targets=_CAPITALS,
        layers=MIDDLE,
        positions={"country": COUNTRY, "last": "last"},
    )
    by = {row["position"]: row["recovery"] for row in rows(found)}
    return {**by, "claim": "A" if by["country"] > by["last"] else "B"}


async def readable_late(tools: Tools) -> Value:
    """A vector of each layer, added there."""
    changes: dict[str, float] = {}
    for name, layer in (("early", EARLY), ("late", LATE)):
        await tools.call(
            "make_vector",
            name=name,
            method="mean_difference",
            positive=[CLEAN],
            negative=[CORRUPTED],
            layers=layer,
            positions=COUNTRY,
        )
        add = {"op": "add", "layers": layer, "positions": COUNTRY, "vector": name}
        changes[name] = await _difference(tools, [add])
    base = await _difference(tools, [])
    moved = {name: value - base for name, value in changes.items()}
    return {**moved, "verdict": "early only" if abs(moved["late"]) < abs(moved["early"]) / 4 else "early and late"}


async def _difference(tools: Tools, operations: list[dict[str, Any]]) -> float:
    """The logit difference, which direct attribution attributes."""
    found = await tools.call(
        "attribute", prompts=CORRUPTED, targets=_CAPITALS, by="layer", layers=0, top_k=1, interventions=operations
    )
    return found["metric"]


SOLUTIONS = {
    "suppressing-head": suppressing_head,
    "headline-head": headline_head,
    "circuit-complement": complement,
    "rival-sets": rivals,
    "direct-or-mediated": mediated,
    "two-claims": carrier,
    "readable-late": readable_late,
}
