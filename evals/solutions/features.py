"""The planted features, by the tools."""

from __future__ import annotations

from typing import Any

from evals.planted import DICTIONARY
from evals.question import Value
from evals.questions.features import AMOUNT, ANSWER, CAUSAL, COOL, EDITED, MANY, NOT_CAUSAL, WARM
from evals.solutions.rows import rows
from evals.tools import Tools

_NOTHING = 0.005


async def _load(tools: Tools) -> None:
    await tools.call("load_features", name="d", source=DICTIONARY)


async def _change(tools: Tools, prompt: str, feature: int) -> float:
    """Zeros in place of the feature."""
    cells: list[dict[str, Any]] = [{"site": "features", "dictionary": "d", "features": [feature]}]
    found = await tools.call(
        "patch_activations",
        clean=prompt,
        corrupted={"ablate": "zero"},
        targets={"answer": ANSWER},
        metric="log_probability",
        cells=cells,
    )
    return rows(found)[0]["value"] - found["clean"]


async def colour_feature(tools: Tools) -> Value:
    """The first of the features that differ, without which the answer is less likely."""
    await _load(tools)
    found = await tools.call("features", dictionary="d", prompts={"warm": list(WARM), "cool": list(COOL)})
    best = max(rows(found), key=lambda row: row["difference"])["feature"]
    return {"feature": best, "change": await _change(tools, EDITED, best)}


async def amount_feature(tools: Tools) -> Value:
    """Its activation, and what its absence changes."""
    await _load(tools)
    found = await tools.call("features", dictionary="d", prompts=MANY, features=[AMOUNT], positions="last")
    change = await _change(tools, MANY, AMOUNT)
    verdict = CAUSAL if abs(change) > _NOTHING else NOT_CAUSAL
    return {"activation": rows(found)[0]["mean"], "change": change, "verdict": verdict}


SOLUTIONS = {"colour-feature": colour_feature, "amount-feature": amount_feature}
