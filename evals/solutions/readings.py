"""What the model says, and what its layers hold, by the tools."""

from __future__ import annotations

from itertools import pairwise

from evals.questions.readings import BANKS, CAPITAL, CHAT, COMPARED, ENTROPIES, HAMLET, SENTENCE, SKIPPED, TARGET, WORD
from evals.solutions.rows import rows, top_token
from evals.tools import Tools


async def leading_layer(tools: Tools) -> int:
    """The table shows the layers on both sides of each change of the top token."""
    shown = rows(await tools.call("logit_lens", prompts=HAMLET))
    others = [row["layer"] for row in shown if top_token(row) != top_token(shown[-1])]
    return max(others, default=-1) + 1


async def furthest_layer(tools: Tools) -> int:
    """The answer shows some of the layers, the run has all."""
    answer = await tools.call("logit_lens", prompts=CAPITAL)
    page = await tools.call(
        "read_run", run_id=answer["run_id"], part="readings.layers", columns=["layer", "kl"], limit=30
    )
    return max(rows(page), key=lambda row: row["kl"])["layer"]


async def open_prompt(tools: Tools) -> str:
    """Of several prompts the answer shows a row each."""
    shown = rows(await tools.call("logit_lens", prompts=list(ENTROPIES), layers=-1))
    return ENTROPIES[max(shown, key=lambda row: row["entropy"])["prompt"]]


async def chat_answer(tools: Tools) -> str:
    """A chat is a prompt like any other."""
    answer = await tools.call("logit_lens", prompts=[{"role": "user", "content": CHAT}], layers=-1)
    return top_token(rows(answer)[-1])


async def token_count(tools: Tools) -> int:
    """The tokenizer's answer counts."""
    return (await tools.call("tokenize", prompts=SENTENCE))["counts"][0]


async def skipped_probability(tools: Tools) -> float:
    """A target in the last layer, under an intervention."""
    answer = await tools.call(
        "logit_lens",
        prompts=CAPITAL,
        layers=-1,
        targets={"capital": " Paris"},
        interventions=[{"op": "skip", "layers": list(SKIPPED)}],
    )
    return rows(answer)[-1]["capital p, rank"][0]


async def sense_cosine(tools: Tools) -> float:
    """Of groups of one prompt, the cosine of the means is that of the states."""
    answer = await tools.call(
        "collect_activations",
        prompts={"one": BANKS[0], "other": BANKS[1]},
        layers=COMPARED,
        positions={"text": WORD},
    )
    return rows(answer)[0]["cosine"]


async def outlier_layer(tools: Tools) -> int:
    """The answer shows some of the layers, the run has all."""
    answer = await tools.call("collect_activations", prompts=CAPITAL, positions=0)
    page = await tools.call(
        "read_run", run_id=answer["run_id"], part="summaries.groups", columns=["layer", "norm"], limit=30
    )
    return max(pairwise(rows(page)), key=lambda pair: pair[1]["norm"] / pair[0]["norm"])[1]["layer"]


async def patchscope_layer(tools: Tools) -> int:
    """The table shows the layers on both sides of each change of the top token."""
    answer = await tools.call(
        "patchscope", source_prompts=CAPITAL, source_positions={"text": " France"}, target_prompt=TARGET
    )
    shown = [row for row in rows(answer) if row["layer"] != "unpatched"]
    return max((row["layer"] for row in shown if row["own next p, rank"][1] != 1), default=-1) + 1


SOLUTIONS = {
    "leading-layer": leading_layer,
    "furthest-layer": furthest_layer,
    "open-prompt": open_prompt,
    "chat-answer": chat_answer,
    "token-count": token_count,
    "skipped-probability": skipped_probability,
    "sense-cosine": sense_cosine,
    "outlier-layer": outlier_layer,
    "patchscope-layer": patchscope_layer,
}
