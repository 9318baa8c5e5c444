"""The planted models, by the tools."""

from __future__ import annotations

from typing import Any

from evals.question import Value
from evals.questions.planted import (
    AMOUNTS,
    ANSWER,
    ATTRIBUTE_LAYER,
    BEGUN,
    COLD,
    COLOURS,
    COPIED,
    FACTOR,
    FOLLOWER,
    HOT,
    NOISE,
    NOISE_ANSWER,
    NOT_CAUSE,
    PAIRED,
    REPEATED,
    SAID,
)
from evals.solutions.rows import Row, rows
from evals.tools import Tools

_ZERO: dict[str, Any] = {"ablate": "zero"}


async def _ablate(tools: Tools, prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    """Every head alone, or a set."""
    return await tools.call(
        "patch_activations", clean=prompt, corrupted=_ZERO, targets={"answer": answer}, metric="log_probability", **more
    )


async def _changes(tools: Tools, prompt: str, answer: str) -> dict[str, float]:
    """The change of the log-probability without each head, all of which one page shows."""
    found = await _ablate(tools, prompt, answer, heads="all")
    page = await tools.call(
        "read_run", run_id=found["run_id"], part="cells", columns=["layer", "head", "effect"], limit=8
    )
    return {f"L{row['layer']}H{row['head']}": row["effect"] for row in rows(page)}


async def copying_pair(tools: Tools) -> Value:
    """The lowest of each layer."""
    found = await _changes(tools, REPEATED, COPIED)
    first, second = (min((name for name in found if name[1] == layer), key=found.__getitem__) for layer in "01")
    return {"first": first, "second": second, "change": found[second]}


async def copying_route(tools: Tools) -> Value:
    """Path patching to each input of the head."""
    changes: dict[str, float] = {}
    for name in ("queries", "keys", "values"):
        end = {"site": name, "layers": 1, "heads": 1}
        found = await _ablate(tools, REPEATED, COPIED, heads=2, layers=0, receivers=end)
        table = rows(found)
        changes[name] = table[0]["log_probability"] - found["clean"] if table else 0.0
    route = min(changes, key=changes.__getitem__)
    return {"route": route, "change": changes[route]}


async def suppressor(tools: Tools) -> Value:
    """The highest of all."""
    found = await _changes(tools, SAID, ANSWER)
    head = max(found, key=found.__getitem__)
    return {"head": head, "raised": found[head]}


async def attended(tools: Tools) -> Value:
    """Attention says one thing, ablation another."""
    at = SAID.split().index(ANSWER)
    told = await tools.call("attention_probs", prompts=SAID, query_positions="last")
    page = await tools.call("read_run", run_id=told["run_id"], part="queries.heads", limit=8)

    def attention(row: Row) -> float:
        return next((probability for _, position, probability in row["keys"] if position == at), 0.0)

    most = max(rows(page), key=attention)
    found, head = await _changes(tools, SAID, ANSWER), f"L{most['layer']}H{most['head']}"
    largest = max(found, key=lambda name: abs(found[name]))
    return {
        "head": head,
        "change": found[head],
        "verdict": NOT_CAUSE if largest != head else "it has the largest effect",
    }


async def readable(tools: Tools) -> Value:
    """Both directions added with one factor."""
    edits: dict[str, list[dict[str, Any]]] = {"none": []}
    for name, sets in (("colour", COLOURS), ("amount", AMOUNTS)):
        positive, negative = ([f"{BEGUN} {word}" for word in words] for words in sets)
        await tools.call(
            "make_vector",
            name=name,
            method="mean_difference",
            positive=positive,
            negative=negative,
            layers=ATTRIBUTE_LAYER,
        )
        edits[name] = [{"op": "add", "layers": ATTRIBUTE_LAYER, "vector": name, "factor": FACTOR}]
    prompt, targets, found = f"{BEGUN} {BEGUN.split()[0]}", {"answer": HOT, "wrong": COLD}, dict[str, float]()
    for name, operations in edits.items():
        told = await tools.call(
            "attribute", prompts=prompt, targets=targets, by="layer", top_k=1, interventions=operations
        )
        found[name] = told["metric"]
    changes = {name: found[name] - found["none"] for name in ("colour", "amount")}
    return {**changes, "causal": max(changes, key=lambda name: abs(changes[name]))}


async def looks_copied(tools: Tools) -> Value:
    """All heads together."""
    found = await _ablate(tools, PAIRED, FOLLOWER, heads="all", cells=[{"layers": [0, 1]}])
    change = rows(found)[0]["value"] - found["clean"]
    copies = "attention copies it" if change < -1 else "attention does not copy it"
    return {"log_probability": found["clean"], "change": change, "verdict": copies}


async def no_circuit(tools: Tools) -> Value:
    """The two largest."""
    found = await _changes(tools, NOISE, NOISE_ANSWER)
    first, second = sorted(found, key=lambda name: -abs(found[name]))[:2]
    twice = abs(found[first]) >= 2 * abs(found[second])
    return {"head": first, "change": found[first], "verdict": "one head dominates" if twice else "no head dominates"}


SOLUTIONS = {
    "copying-pair": copying_pair,
    "copying-route": copying_route,
    "planted-suppressor": suppressor,
    "attended-or-used": attended,
    "readable-or-causal": readable,
    "looks-copied": looks_copied,
    "no-circuit": no_circuit,
}
