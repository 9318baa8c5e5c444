"""Claims and circuits of planted models, by the tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evals.question import Value
from evals.questions.claims import ECHO, ECHOING, LOOKING, NOT_CARRIED, PARROT, ROUTES, Pairs
from evals.solutions.rows import rows
from evals.tools import Tools

_NOTHING = 0.05


def _behaviour(pairs: Pairs) -> dict[str, Any]:
    return {
        "clean": [clean for clean, *_ in pairs],
        "corrupted": [corrupted for _, corrupted, *_ in pairs],
        "targets": [{"answer": answer, "wrong": wrong} for *_, answer, wrong in pairs],
    }


async def _claim(tools: Tools, pairs: Pairs, heads: Sequence[tuple[int, int]]) -> Value:
    """The verdict, with the effects of both exchanges."""
    claim = [f"L{layer}H{head}" for layer, head in heads]
    found = await tools.call("verify_claim", claim=claim, found_on=["theory"], **_behaviour(pairs))
    effects = {row["test"]: row["effect"] for row in rows(found)}
    verdict = "supported" if found["verdict"] == "supported" else "not supported"
    return {"necessity": effects["necessity"], "sufficiency": effects["sufficiency"], "verdict": verdict}


async def echo_claim(tools: Tools) -> Value:
    """Both heads together."""
    return await _claim(tools, ECHO, ECHOING)


async def parrot_claim(tools: Tools) -> Value:
    """The head that attends so."""
    return await _claim(tools, PARROT, LOOKING)


async def _edges(tools: Tools, pairs: Pairs) -> dict[tuple[str, str], float]:
    """The edges of the circuit of one pair, with what patching each changes."""
    found = await tools.call("find_circuit", draws=0, **_behaviour(pairs[:1]))
    return {(row["from"], row["to"]): row["patched"] for row in rows(found)}


async def echo_edge(tools: Tools) -> Value:
    """The strongest of the edges between the two heads."""
    first, second = (f"L{layer}H{head}" for layer, head in ECHOING)
    edges = await _edges(tools, ECHO)
    changes = {route: edges.get((first, f"{second} {route}"), 0.0) for route in ROUTES}
    route = min(changes, key=changes.__getitem__)
    return {"route": route, "change": changes[route]}


async def parrot_edge(tools: Tools) -> Value:
    """The edge is not in the circuit, which does all."""
    change = (await _edges(tools, PARROT)).get(("L1H3", "L3H1 keys"), 0.0)
    return {"change": change, "verdict": "it carries it" if change < -_NOTHING else NOT_CARRIED}


SOLUTIONS = {
    "claim-of-two-heads": echo_claim,
    "claim-from-attention": parrot_claim,
    "edge-that-carries": echo_edge,
    "edge-from-attention": parrot_edge,
}
