"""What causes an answer, by the tools."""

from __future__ import annotations

import re
from typing import Any

from evals.questions.causes import ABLATED, ANSWER, CLEAN, CORRUPTED, COUNTRY, NOISED, WRONG
from evals.solutions.rows import rows
from evals.tools import Tools

_TARGETS = {"answer": ANSWER, "wrong": WRONG}
_PAIR: dict[str, Any] = {"clean": CLEAN, "corrupted": CORRUPTED, "targets": _TARGETS}


async def last_useful_layer(tools: Tools) -> int:
    """The answer shows the strongest cells, the run has all."""
    answer = await tools.call("patch_activations", **_PAIR, sites="layers_output", positions=COUNTRY)
    page = await tools.call("read_run", run_id=answer["run_id"], part="cells", columns=["layer", "recovery"], limit=30)
    return max(row["layer"] for row in rows(page) if row["recovery"] > 0.5)


async def restoring_head(tools: Tools) -> str:
    """The strongest cell comes first."""
    answer = await tools.call("patch_activations", **_PAIR, heads="all", positions="last")
    return max(rows(answer), key=lambda row: row["recovery"])["head"]


async def noised_difference(tools: Tools) -> float:
    """A grid of one cell."""
    layer, head = NOISED
    answer = await tools.call(
        "patch_activations", **_PAIR, layers=layer, heads=head, positions="last", direction="noising"
    )
    return rows(answer)[0]["logit_difference"]


async def ablated_divergence(tools: Tools) -> float:
    """Without positions, a part is ablated at all of them together."""
    answer = await tools.call(
        "patch_activations",
        clean=CLEAN,
        corrupted={"ablate": "zero"},
        metric="kl",
        sites="mlps_output",
        layers=ABLATED,
    )
    return rows(answer)[0]["KL(clean ‖ patched)"]


async def _parts(tools: Tools, kind: str) -> dict[int, float]:
    """What the parts of one kind write of the logit difference, by layer; the strongest are shown."""
    answer = await tools.call("attribute", prompts=CLEAN, targets=_TARGETS, by="sublayer")
    found = [(re.fullmatch(rf"L(\d+) {kind}", row["part"]), row["logit_difference"]) for row in rows(answer)]
    return {int(part[1]): value for part, value in found if part}


async def direct_mlp(tools: Tools) -> int:
    """The strongest MLP."""
    parts = await _parts(tools, "MLP")
    return max(parts, key=lambda layer: parts[layer])


async def direct_attention(tools: Tools) -> float:
    """What the strongest attention writes."""
    return max((await _parts(tools, "attention")).values())


async def sloping_token(tools: Tools) -> str:
    """The token of the first row, in quotes."""
    answer = await tools.call("attribute", prompts=CLEAN, targets=_TARGETS, method="gradient")
    return max(rows(answer), key=lambda row: row["logit_difference"])["token"].strip('"')


SOLUTIONS = {
    "last-useful-layer": last_useful_layer,
    "restoring-head": restoring_head,
    "noised-difference": noised_difference,
    "ablated-divergence": ablated_divergence,
    "direct-mlp": direct_mlp,
    "direct-attention": direct_attention,
    "sloping-token": sloping_token,
}
