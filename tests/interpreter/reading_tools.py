"""What the tools that read a model should answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.interpreter.comparison import Comparison, divergence, entropy
from tests.interpreter.plain import Edit, Place, States
from tests.interpreter.subject import TIE, Subject, normal
from tests.interpreter.text import Text, as_list, numbers, without_first

Arguments = dict[str, Any]

REPEAT = "king king\n1135 1135\nhello hello\n?"
"""The patchscope's own target prompt."""


DICTIONARY_LAYER = 1
"""The layer after which the dictionary of features reads."""


def dictionary_of(subject: Subject) -> Path:
    """The folder of the dictionary that is loaded for a subject."""
    return subject.folder.parent / f"dictionary-{subject.folder.name}"


def texts(subject: Subject, arguments: Arguments, name: str = "prompts") -> list[Text]:
    """The prompts of a call."""
    return [subject.by.read(text) for text in as_list(arguments[name])]


def words(arguments: Arguments) -> list[list[str]]:
    """The strings of each category."""
    return [as_list(strings) for strings in arguments.get("targets", {}).values()]


def logit_lens(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """Every layer's distribution at every position asked for."""
    prompts = texts(subject, arguments)
    sign = -1.0 if arguments.get("lens") == "inverse" else 1.0
    layers = numbers(arguments.get("layers", "all"), subject.plain.layers)
    asked = [(which, at) for which, text in enumerate(prompts) for at in text.at(arguments.get("positions", "last"))]
    told.same("readings", [(one.prompt, one.position) for one in result.readings], asked)
    lenses: dict[tuple[int, int], Tensor] = {}
    for which in range(len(prompts)):
        ran = subject.run(arguments["interventions"], prompts, which)
        lenses[which, subject.plain.layers - 1] = normal(sign * ran.logits)
        for layer in layers:
            if layer < subject.plain.layers - 1:
                lenses[which, layer] = normal(sign * subject.lens(ran, layer))
    for reading in result.readings:
        last = lenses[reading.prompt, subject.plain.layers - 1][reading.position]
        told.same("layers", [one.layer for one in reading.layers], layers)
        for one in reading.layers:
            expected = lenses[reading.prompt, one.layer][reading.position]
            _distribution(told, f"prompt {reading.prompt} at {reading.position} layer {one.layer}", one, expected)
            told.followed("lens", one.targets, expected, words(arguments))
            told.near("kl", one.kl, divergence(last, expected))


def _distribution(told: Comparison, what: str, found: Any, expected: Tensor) -> None:
    told.top(what, found.top, expected)
    told.near(f"{what} entropy", found.entropy, entropy(expected))


def run_prompts(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """The next token, or each layer's lens or patchscope, at the end of every prompt."""
    prompts = texts(subject, arguments)
    last = subject.plain.layers - 1
    readout = arguments.get("readout", "next_token")
    layers = [last] if readout == "next_token" else numbers(arguments.get("layers", "all"), last + 1)
    target = subject.by.read(REPEAT)
    for which, row in enumerate(result.rows):
        ran = subject.run(arguments["interventions"], prompts, which)
        for index, layer in enumerate(layers):
            if readout == "patchscope":
                state = ran.states["layers_output", layer][-1]
                expected = normal(
                    subject.run([], [target], 0, then={("layers_output", layer): put([-1], state)}).logits[-1]
                )
            else:
                expected = normal(ran.logits[-1]) if layer == last else subject.lens(ran, layer)[-1]
            what = f"prompt {which} layer {layer}"
            found = list(zip(row.probabilities[index], row.ranks[index], strict=True))
            told.followed(what, found, expected, words(arguments))
            if layer == layers[-1]:
                told.top(what, row.top, expected)


def put(at: list[int], states: Tensor) -> Edit:
    """Puts states at positions."""

    def edit(came: Tensor, seen: States) -> Tensor:
        changed = came.clone()
        changed[at] = states
        return changed

    return edit


def collect_activations(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """The states at a site, the interventions made."""
    prompts = texts(subject, arguments)
    site = arguments["site"]
    layers = [-1] if site == "token_embeddings" else numbers(arguments.get("layers", "all"), subject.plain.layers)
    pool, rows = arguments.get("pool", "none"), list[Tensor]()
    for which, text in enumerate(prompts):
        states = subject.run(arguments["interventions"], prompts, which).states
        asked = arguments.get("positions", "last")
        at = text.at(without_first(asked, text) if pool == "mean" else asked)
        taken = torch.stack([states[site, layer][at] for layer in layers], 1)
        rows.append(taken if pool == "none" else taken.mean(0)[None] if pool == "mean" else taken[-1:])
    told.near(site, subject.lab.arrays["states"].float(), torch.cat(rows))


def attention_probs(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """The patterns, and the strongest keys of the queries that are named."""
    prompts = texts(subject, arguments)
    layers = numbers(arguments.get("layers", "all"), subject.plain.layers)
    heads = numbers(arguments.get("heads", "all"), subject.plain.heads)
    patterns: list[Tensor] = []
    for which in range(len(prompts)):
        states = subject.run(arguments["interventions"], prompts, which).states
        by_layer = [states["attention_probabilities", layer][:, heads].transpose(0, 1) for layer in layers]
        patterns.append(torch.cat(by_layer))
        name = "attention" if len(prompts) == 1 else f"attention_{which}"
        told.near(name, subject.lab.arrays[name], patterns[-1])
    names = [(layer, head) for layer in layers for head in heads]
    for query in result.queries:
        for read in query.heads:
            row = patterns[query.prompt][names.index((read.layer, read.head)), query.position]
            told.near("first", read.first, row[0])
            for _, key, p in read.keys:
                told.near(f"key {key}", p, row[key])
            best = row[1:].sort(descending=True).values[: len(read.keys)]
            told.near("strongest keys", [p for _, _, p in read.keys], best)


def patchscope(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """The target prompt with each state put in, and left alone."""
    sources = texts(subject, arguments, "source_prompts") if "source_prompts" in arguments else []
    target = subject.by.read(arguments.get("target_prompt", REPEAT))
    request = [*sources, target]
    position = target.at(arguments.get("target_position", "last"))[-1]
    count, operations = arguments.get("max_new_tokens", 0), arguments["interventions"]
    runs = [subject.run(operations, request, which) for which in range(len(sources))]

    def check(what: str, found: Any, then: dict[Place, Edit]) -> None:
        expected = normal(subject.run(operations, request, len(sources), then=then).logits[-1])
        _distribution(told, what, found, expected)
        told.followed(what, found.tracked, expected, words(arguments))
        if count:
            ids, _, gap, _ = subject.say(operations, request, len(sources), count, then)
            text(subject, told, f"{what} text", found.text, ids, gap)

    for source in result.sources:
        check("unpatched", source.unpatched, {})
        if source.vector is not None:
            told.same("vector", source.vector, arguments["source_vectors"])
            for one in source.patches:
                state = arguments["factor"] * subject.by.vector(source.vector, one.source_layer)
                what = f"vector, layer {one.source_layer} to {one.target_layer}"
                check(what, one, {("layers_output", one.target_layer): put([position], state)})
            continue
        answer = normal(runs[source.prompt].logits[source.position]).topk(2)
        if float(answer.values[0] - answer.values[1]) > TIE:
            told.same("answer", source.answer, told.word(int(answer.indices[0])))
        for one in source.patches:
            state = runs[source.prompt].states["layers_output", one.source_layer][source.position]
            what = f"prompt {source.prompt} at {source.position}, layer {one.source_layer} to {one.target_layer}"
            check(what, one, {("layers_output", one.target_layer): put([position], state)})


def text(subject: Subject, told: Comparison, what: str, found: str, ids: list[int], gap: float) -> None:
    """Compares a text, unless rounding may have chosen one of its tokens."""
    if gap < TIE:
        told.ties += 1
    else:
        told.same(what, found, subject.by.tokenizer.decode(ids, skip_special_tokens=True))


def features(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """The strongest features at every token but the first."""
    weights = load_file(dictionary_of(subject) / "sae_weights.safetensors")
    prompts = texts(subject, arguments)
    asked = [(which, at) for which, text in enumerate(prompts) for at in text.at(without_first("all", text))]
    told.same("tokens", [(one.prompt, one.position) for one in result.at_tokens], asked)
    for which in range(len(prompts)):
        states = subject.run(arguments["interventions"], prompts, which).states["layers_output", DICTIONARY_LAYER]
        active = (states @ weights["W_enc"] + weights["b_enc"]).relu()
        for token in result.at_tokens:
            if token.prompt == which:
                found = [one.activation for one in token.strongest]
                told.near("strongest", found, active[token.position].topk(len(found)).values)
                told.near("named", found, active[token.position][[one.feature for one in token.strongest]])
