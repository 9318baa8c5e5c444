"""The recipe of a fine-tune: what an adapter taught a model."""

from __future__ import annotations

from collections.abc import Mapping

from nnterp_mcp.pool.handles import handle_of, handle_of_adapter
from nnterp_mcp.request.adapter_folder import split_scale
from nnterp_mcp.server.recipe import (
    ANSWER_ARGUMENT,
    MODEL_ARGUMENT,
    REPORT,
    Argument,
    Recipe,
    call,
    choose_model,
    claim_of_fact,
)


def _explain_finetune(given: Mapping[str, str], loaded: Mapping[str, int]) -> str:
    model, _ = choose_model(given, loaded)
    base = model if model in loaded else handle_of(model)
    tuned = f"{base}+{handle_of_adapter(split_scale(given['adapter'])[0])}"
    prompts, vector = [given["prompt"], given["other_prompt"]], "finetune"
    targets = {"answer": given["answer"]}
    spoken = {"positive": [f"{prompt} {given['answer']}" for prompt in prompts], "negative": prompts}
    claim = claim_of_fact(given, claim=["mlps_output L1"], targets=targets)
    doses = "\n".join(
        call("run_prompts", prompts=prompts, targets=targets, model=f"{tuned}{scale}") for scale in ("@0", "@0.5", "@2")
    )
    return f"""\
Find out what the adapter {given["adapter"]} taught {model}, as far as {given["prompt"]!r} shows it.

Look
{call("load_model", model=model, adapter=given["adapter"])}
Where load_model answers with another handle, use that one below.
{call("compare_models", model=tuned, prompts=prompts)}
{call("generate", model=tuned, prompts=prompts, max_new_tokens=24, temperature=1)}
Read the texts first: they often say what was taught. Is it said after the first prompt alone, or after any?

Hypothesise: which layers changed, and which direction
{call("logit_lens", model=tuned, prompts=prompts, targets=targets)}
In the comparison, `made` is what a layer's own weights change, `came` what earlier ones hand on; the differences \
promote tokens. Large weights may do nothing: go by patching into base.

Intervene
If a place carries it, the base with that place's states says it. If a direction does, the base can be steered: put \
what the fine-tune and what the base wrote in place of these texts, and a layer that carries it in place of 1.
{call("make_vector", name=vector, method="mean_difference", model=base, **spoken)}
{call("steer", prompts=prompts[1], vector=vector, layers=[1], factors=[-2, 2], control=True, model=base)}

Control
compare_models adds a random change of the same norm and rank: what was learned must exceed it. Turn the adapter off, \
down and up; off is the base, and an effect that follows the scale is the adapter's:
{doses}

Verdict
Put the place that carries it in place of this one: it should be supported in the fine-tune, and not in the base.
{call("verify_claim", **claim, model=tuned)}
{call("verify_claim", **claim, model=base)}

It counts against what you say was taught if the texts of the base show it too; if a random change moves predictions \
as far; if the other prompt changes as much (then it is no answer to the first); or if no place, and no direction, \
carries it over.
{REPORT}"""


EXPLAIN_FINETUNE = Recipe(
    "explain_finetune",
    "Find what a fine-tune learned",
    "What an adapter taught a model: texts, changed layers, patching across both, a direction, and the adapter off.",
    (
        Argument("adapter", "The PEFT folder of a LoRA adapter, or its id on the Hub", True, "pirate"),
        Argument("prompt", "A text after which the fine-tune shows", True, "Question: What do bees make? Answer:"),
        Argument("other_prompt", "A text of the same form after which it should not", True, "The capital of France is"),
        Argument("answer", ANSWER_ARGUMENT.meaning, True, "Arr"),
        MODEL_ARGUMENT,
    ),
    _explain_finetune,
)
