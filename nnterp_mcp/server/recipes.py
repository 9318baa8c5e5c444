"""Recipes: experiments that a person can start from a client, written out as tool calls.

Every line that starts with a tool's name is a call that runs unchanged; the text around it says what to look for, what
to change, the control, and what would count against the hypothesis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.server.finetune_recipe import EXPLAIN_FINETUNE
from nnterp_mcp.server.recipe import (
    ANSWER,
    DEFAULT_MODEL,
    MODEL,
    OTHER_PROMPT,
    PROMPT,
    REPORT,
    Argument,
    Recipe,
    call,
    choose_model,
    claim_of_fact,
    load,
    make_others,
    middle_layers,
    pick_layer,
    split_texts,
)


def _locate_fact(given: Mapping[str, str], loaded: Mapping[str, int]) -> str:
    model, named = choose_model(given, loaded)
    clean, subject, other = given["prompt"], given["subject"], given["other_subject"]
    if subject not in clean:
        raise InvalidRequest(f"the subject {subject!r} is not in the prompt {clean!r}.")
    wrong = {"answer": given["answer"], "wrong": given["other_answer"]}
    swap = {"clean": clean, "corrupted": {"replace": subject, "with": other}, "targets": wrong, "model": named}
    places = {"subject": {"clean": {"text": subject}, "corrupted": {"text": other}}, "end": "last"}
    circuit = {"direction": "noising", "positions": {"end": "last"}, "cells": ["L0H0", "L0H1"], "complement": True}
    claim = {"claim": circuit["cells"], "positions": circuit["positions"], "found_on": [clean]}
    return f"""\
Find where {model} recalls that {clean!r} continues with {given["answer"]!r}.

Look
{load(model, loaded)}
{call("tokenize", prompts=[clean, clean.replace(subject, other)], model=named)}
{call("logit_lens", prompts=[clean, clean.replace(subject, other)], targets=wrong, model=named)}
Continue only if the last layer gives each prompt its own answer; otherwise the model does not know the fact, and \
there is nothing to find. Note the layer from which on the answer is the top token.

Hypothesise, then intervene
{call("patch_activations", **swap, positions=places, control=True)}
Where one clean state restores the answer (recovery near 1), that position carries it: the subject's tokens in early \
layers, the last token later. The fact is recalled around the layers where it moves from one to the other.
{call("patch_activations", **swap, positions=places, sites=["attentions_output", "mlps_output"])}
MLPs at the subject's last token that restore the answer suggest recall; attention at the last token suggests that it \
is copied from there. Layer 0 restores it at the subject in any case: it holds little but the token itself.
{call("patch_activations", **swap, positions={"end": "last"}, heads="all")}
{call("attribute", prompts=clean, targets=wrong, by="head", model=named)}

Control
{call("patch_activations", **swap, positions=places, direction="noising")}
Denoising shows which states suffice, noising which are needed: a position and layer count if they do both. The first \
call's control compares the strongest cells with 20 random sets.
Put the heads that you found in place of these, and measure them as a set: faithfulness is the share of the answer \
that they give alone, completeness the share that all other heads give without them.
{call("patch_activations", **swap, **circuit)}

Verdict
End on prompts that found nothing, better than these if you have some: the verdict compares the heads with random ones.
{call("verify_claim", **swap | {"clean": make_others(clean)} | claim)}

It counts against a cell if random sets restore as much; if noising it costs nothing; if all other cells give the \
answer without it; or if its effect is gone for a paraphrase of the prompt.
{REPORT}"""


def _steering_vector(given: Mapping[str, str], loaded: Mapping[str, int]) -> str:
    model, named = choose_model(given, loaded)
    positive, negative = split_texts(given, "positive"), split_texts(given, "negative")
    vector, prompt = given["vector"], given["prompt"]
    layers = given.get("layers") or middle_layers(model, loaded)
    folds = max(2, min(5, len(positive), len(negative)))
    removed = [{"op": "project_out", "vector": vector, "layers": layers}]
    pairs = {"clean": make_others(*positive), "corrupted": make_others(*negative), "positions": {"end": "last"}}
    claim = {"claim": {"vector": vector, "layer": pick_layer(layers, model, loaded)}, "found_on": [vector]}
    unrelated = {"prompts": ["The capital of France is"], "targets": {"answer": "Paris"}}
    return f"""\
Build a direction in {model} that points from the negative texts to the positive ones, and find out whether it steers.

Make it
{load(model, loaded)}
{call("make_vector", name=vector, method="mean_difference", positive=positive, negative=negative, model=named)}
{call("train_probe", prompts={"positive": positive, "negative": negative}, folds=folds, model=named)}
The texts must differ in what you mean alone: same length, same form. Go on at layers where unseen texts are told \
apart better than with shuffled labels.

Intervene
{call("steer", prompts=prompt, vector=vector, layers=layers, factors=[-4, -2, 2, 4], control=True, model=named)}
{call("patchscope", source_vectors=[vector], source_layers=layers, factor=4, model=named)}
Take the layer and the smallest factor at which the effect stands clear of the control, put them in here, and read:
{call("steer", prompts=prompt, vector=vector, layers=layers, factors=[4], max_new_tokens=24, model=named)}

Control
The control adds random directions of equal norm. Steer in both directions: a real one reverses with the sign. Then \
take the direction away, and see whether the behaviour needs it:
{call("generate", prompts=prompt, interventions=removed, max_new_tokens=24, model=named)}
And what it breaks, on texts that have nothing to do with it:
{call("run_prompts", **unrelated, interventions=removed, model=named)}

Verdict
End on pairs of texts that did not make it, better than these if you have some, at the layer that you took: sufficient \
if what a positive text has along the vector makes the negative one go on like it, more than along random directions.
{call("verify_claim", **claim, **pairs, predicts="sufficient", model=named)}

It counts against the vector if random directions move the model as far (KL); if -factor does what factor does; if it \
works only where `push` is near 1 or more, where any push breaks the text; if it works on the texts that it was made \
of and on no others; or if unrelated prompts suffer.
{REPORT}"""


def _explain_prediction(given: Mapping[str, str], loaded: Mapping[str, int]) -> str:
    model, named = choose_model(given, loaded)
    prompt = given["prompt"]
    targets = {"answer": given["answer"]} | ({"wrong": given["other_answer"]} if given.get("other_answer") else {})
    cut = {"op": "zero", "site": "heads_output", "layers": [1], "heads": [0]}
    claim = claim_of_fact(given, claim=["L1H0"], targets=targets)
    ablated = {"clean": prompt, "corrupted": {"ablate": "zero"}, "targets": targets, "model": named}
    return f"""\
Explain why {model} continues with {given["answer"]!r} after {prompt!r}.

Look
{load(model, loaded)}
{call("tokenize", prompts=prompt, model=named)}
{call("logit_lens", prompts=prompt, targets=targets, model=named)}
Is it what the model says, how sure is it, and from which layer on?

Hypothesise: which parts, which tokens
{call("attribute", prompts=prompt, targets=targets, by="sublayer", model=named)}
{call("attribute", prompts=prompt, targets=targets, by="head", model=named)}
{call("attribute", prompts=prompt, targets=targets, method="integrated", model=named)}
{call("attention_probs", prompts=prompt, query_positions="last", model=named)}
Direct attribution adds up to the logit, but sees only what is written straight to it. Look what the strongest heads \
read: a head that writes the answer should attend to where it comes from.

Intervene
Put the layers and heads that you found in place of these, and see what the answer loses:
{call("logit_lens", prompts=prompt, targets=targets, layers=-1, interventions=[cut], model=named)}
{call("patch_activations", **ablated, heads="all")}

Control
Put the heads that you found in place of these: the answer compares them with 20 random sets of heads of the same \
layers, and says which share of the metric they give alone, and all other heads without them.
{call("patch_activations", **ablated, cells=["L1H0"], complement=True)}
Then test the explanation on prompts like this one, with the same heads zero:
{call("run_prompts", prompts=[prompt], targets=targets, interventions=[cut], model=named)}

Verdict
End with your heads on prompts that found nothing, better than these if you have some, each with one of the same form \
that has another answer: the verdict compares the heads with random ones.
{call("verify_claim", **claim, model=named)}

It counts against the explanation if random heads cost as much; if the parts that attribution names can be cut \
without loss (others take over: cut them together); if tokens that should matter get no share; or if it fails on \
like prompts.
{REPORT}"""


def _induction_heads(given: Mapping[str, str], loaded: Mapping[str, int]) -> str:
    model, named = choose_model(given, loaded)
    prompt = given.get("prompt") or "When Mary and John went to the store, John gave a drink to"

    def knockout(layer: int, heads: list[int]) -> dict[str, Any]:
        return {"op": "knockout", "layers": layer, "heads": heads}

    def without(heads: list[int]) -> str:
        cut = [knockout(1, heads)]
        return call("attention_probs", prompts=prompt, layers=0, heads=0, kinds=True, interventions=cut, model=named)

    repeated = ["seven lamp dog river seven lamp", "chair blue dog paper chair blue"]
    repeated += ["stone king dog seven stone king", "green water dog house green water"]
    claim = {"claim": ["L1H0"], "clean": repeated, "corrupted": {"replace": "dog", "with": "cat"}}
    claim |= {"targets": {"answer": "dog", "wrong": "cat"}, "positions": {"end": "last"}, "found_on": [prompt]}
    return f"""\
Find the induction heads of {model}: heads that, where "A B ... A" was read, look back at B, and so copy it.

Look
{load(model, loaded)}
{call("attention_probs", prompts=prompt, model=named)}
Heads are scored on repeated random tokens, where nothing but copying helps; `copying` is the probability of the \
right next token there. Take heads with a high induction score, and the previous-token heads in earlier layers that \
feed them.

Intervene
Knock the induction heads out, all together, with one operation for each layer in place of these, and read `copying`:
{without([0])}
The same for the previous-token heads: if they feed the induction heads, copying falls too, and so do the scores of \
later heads:
{call("attention_probs", prompts=prompt, interventions=[knockout(0, [0])], model=named)}

Control
As many heads of the same layers that scored low, five draws:
{without([1])}
And the prompt itself, where names come twice, whole and without the heads:
{call("generate", prompts=prompt, max_new_tokens=4, interventions=[knockout(1, [0])], model=named)}

Verdict
End with the induction heads, as a set, on texts that found nothing: what copies "dog" there copies "cat" where "cat" \
stood.
{call("verify_claim", **claim, model=named)}

It counts against a head if copying is as good without it and its like; if random heads cost as much; or if it \
attends there only on this prompt. A pattern alone proves nothing: attention says where a head could read.
{REPORT}"""


def _compare_models(given: Mapping[str, str], loaded: Mapping[str, int]) -> str:
    models, prompt = (given["model_a"], given["model_b"]), given["prompt"]
    if models[0] == models[1]:
        raise InvalidRequest(f"model_a and model_b are both {models[0]!r}: name two models.")
    answer = {"answer": given["answer"]}
    targets = answer | ({"wrong": given["other_answer"]} if given.get("other_answer") else {})

    sublayers = ["attentions_output", "mlps_output"]
    claim = claim_of_fact(given, claim=["mlps_output L1"], targets=targets)

    def each(tool: str, **arguments: Any) -> str:
        return "\n".join(call(tool, **arguments, model=model) for model in models)

    return f"""\
Compare how {models[0]} and {models[1]} come to go on after {prompt!r}.

Look
{chr(10).join(load(model, loaded) for model in models)}
Where load_model answers with another handle, use that one below. A base and a tuned model are the cleanest pair.
{each("tokenize", prompts=prompt)}
{each("logit_lens", prompts=prompt, targets=targets)}
Compare depths as shares of all layers, and ranks rather than probabilities if the vocabularies differ. The model \
that does not know the answer has no place where it knows it.

Where they share tokenizer and modules, as a base and its fine-tune do: what differs, next to a random change
{call("compare_models", model=models[1], base=models[0], prompts=prompt)}

Hypothesise, then measure the same in both
{each("attribute", prompts=prompt, targets=targets, by="sublayer")}
{each("patch_activations", clean=prompt, corrupted={"ablate": "zero"}, targets=targets, sites=sublayers)}
{each("attention_probs", prompts=prompt)}

Control
One prompt differs for a hundred reasons: run a set with known answers in both, and compare means with their spread.
{each("run_prompts", prompts=[prompt], targets=targets, readout="logit_lens")}
The difference between two models must be larger than that between prompts of one model, and between like prompts.

Verdict
Put the place that differs in place of this one: it should be supported in one model alone.
{each("verify_claim", **claim)}

It counts against a difference if it goes with tokenization, length or dtype; if it turns round for a paraphrase; if \
it is no larger than the spread over prompts; or if ablating the place that differs costs both models the same.
{REPORT}"""


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "locate_fact",
            "Find where a fact is recalled",
            "The layers, positions and heads that carry an answer: lens, patching in both directions, random sets.",
            (
                PROMPT,
                Argument("subject", "The piece of the prompt that the fact is about", True, "France"),
                ANSWER,
                Argument("other_subject", "Another of its kind and number of tokens", True, "Spain"),
                Argument("other_answer", "What the model says of that one", True, "Madrid"),
                MODEL,
            ),
            _locate_fact,
        ),
        Recipe(
            "steering_vector",
            "Build and validate a steering vector",
            "A direction from texts, what it does beside random directions, and what it breaks.",
            (
                Argument("vector", "The vector's name; one that exists is made anew", True, "joy"),
                Argument(
                    "positive", "Texts to point towards, separated by |", True, "I won the game | We won the prize"
                ),
                Argument(
                    "negative",
                    "Texts to point away from, alike in all else",
                    True,
                    "I lost the game | We lost the prize",
                ),
                Argument("prompt", "A text to steer, not among those", True, "When I woke up today, I felt"),
                Argument("layers", "A layer, a range such as 10:20, or all; the middle third by default"),
                MODEL,
            ),
            _steering_vector,
        ),
        Recipe(
            "explain_prediction",
            "Explain a prediction",
            "Why a model gives its answer: lens, attribution to parts and tokens, ablation compared with random heads.",
            (
                PROMPT,
                ANSWER,
                Argument("other_answer", "What it might have said instead", example="Rome"),
                Argument("other_prompt", "A prompt of the same form that has this answer", example=OTHER_PROMPT),
                MODEL,
            ),
            _explain_prediction,
        ),
        Recipe(
            "induction_heads",
            "Find induction heads",
            "The heads that copy what followed before, and what copying loses without them.",
            (Argument("prompt", "A text in which something comes twice"), MODEL),
            _induction_heads,
        ),
        Recipe(
            "compare_models",
            "Compare two models",
            "Where two models differ on the same prompt, and whether that is more than the spread over prompts.",
            (
                Argument("model_a", "A loaded model's handle, or what load_model takes", True, DEFAULT_MODEL),
                Argument("model_b", "The other", True, "HuggingFaceTB/SmolLM2-135M"),
                PROMPT,
                ANSWER,
                Argument("other_answer", "What they might say instead", example="Rome"),
                Argument("other_prompt", "A prompt of the same form that has this answer", example=OTHER_PROMPT),
            ),
            _compare_models,
        ),
        EXPLAIN_FINETUNE,
    )
}
"""Every recipe under its name."""
