"""The lenses, by the tools."""

from __future__ import annotations

from evals.question import Value
from evals.questions.lenses import ANSWER, CLEARER, FITTED, LAYER, NO_CLEARER, OTHER, PROMPT
from evals.solutions.rows import rows
from evals.tools import Tools


async def _fit(tools: Tools) -> None:
    await tools.call("fit_lens", name="planted", method="jacobian", prompts=list(FITTED), skip_first=1)


async def early_reading(tools: Tools) -> Value:
    """The answer shows both lenses."""
    await _fit(tools)
    by: dict[str, float] = {}
    for lens in ("planted", "logit"):
        found = await tools.call("logit_lens", prompts=PROMPT, layers=LAYER, targets={"answer": ANSWER}, lens=lens)
        by[lens] = rows(found)[0]["answer p, rank"][0]
    verdict = CLEARER if by["planted"] > by["logit"] else NO_CLEARER
    return {"jacobian": by["planted"], "logit": by["logit"], "verdict": verdict}


async def without_direction(tools: Tools) -> Value:
    """A direction through the lens, projected out."""
    await _fit(tools)
    asked = {"positive": ANSWER, "negative": OTHER, "lens": "planted"}
    await tools.call("make_vector", name="answer", method="unembedding_difference", **asked)
    found = await tools.call(
        "logit_lens",
        prompts=PROMPT,
        layers=-1,
        targets={"answer": ANSWER},
        interventions=[{"op": "project_out", "vector": "answer", "layers": LAYER, "positions": "1:"}],
    )
    return rows(found)[-1]["answer p, rank"][0]


SOLUTIONS = {"early-reading": early_reading, "without-direction": without_direction}
