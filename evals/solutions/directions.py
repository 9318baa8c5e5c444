"""What directions in the residual stream do, and what is read along them, by the tools."""

from __future__ import annotations

from evals.questions.directions import FACTORS, GLAD, HATE, LOVE, MOOD, MOOD_FACTOR, OPINION, PROBED, SAD, STEERED
from evals.solutions.rows import Row, rows, top_token
from evals.tools import Tools


async def _sweep(tools: Tools, factors: tuple[int, ...]) -> list[Row]:
    """The baseline, then a row a factor."""
    vector = {"positive": LOVE, "negative": HATE}
    return rows(await tools.call("steer", prompts=OPINION, vector=vector, layers=STEERED, factors=list(factors)))


async def steering_growth(tools: Tools) -> float:
    """Two factors in one sweep."""
    _, low, high = await _sweep(tools, (4, 8))
    return high["KL(steered || baseline)"] / low["KL(steered || baseline)"]


async def flipping_factor(tools: Tools) -> int:
    """All factors in one sweep."""
    baseline, *steered = await _sweep(tools, FACTORS)
    return int(min(row["factor"] for row in steered if top_token(row) != top_token(baseline)))


async def mood_divergence(tools: Tools) -> float:
    """The groups of prompts are the vector."""
    groups = {"glad": list(GLAD), "sad": list(SAD)}
    answer = await tools.call("steer", prompts=OPINION, vector=groups, layers=MOOD, factors=MOOD_FACTOR)
    return rows(answer)[-1]["KL(steered || baseline)"]


async def probed_layer(tools: Tools) -> int:
    """Every layer that is asked for is shown."""
    answer = await tools.call(
        "train_probe",
        prompts={"A": list(GLAD), "B": list(SAD)},
        method="difference_of_means",
        layers=list(PROBED),
    )
    return max(rows(answer), key=lambda row: row["accuracy"])["layer"]


SOLUTIONS = {
    "steering-growth": steering_growth,
    "flipping-factor": flipping_factor,
    "mood-divergence": mood_divergence,
    "probed-layer": probed_layer,
}
