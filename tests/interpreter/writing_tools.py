"""What the tools that generate or push should answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.interpreter.comparison import Comparison, divergence, first_tokens
from tests.interpreter.language import Operation
from tests.interpreter.plain import Edit, Place, States
from tests.interpreter.reading_tools import Arguments, put, text, texts, words
from tests.interpreter.subject import TIE, Subject, normal
from tests.interpreter.text import Text, as_list, goes_on, numbers, without_first


def generate(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """The baseline and the edited text, token by token."""
    prompts = texts(subject, arguments)
    for one in result.texts:
        _continued(subject, told, f"baseline {one.index}", one.baseline, [], prompts, one.index, arguments)
        if arguments["interventions"]:
            operations = arguments["interventions"]
            _continued(subject, told, f"edited {one.index}", one.edited, operations, prompts, one.index, arguments)


def _continued(
    subject: Subject,
    told: Comparison,
    what: str,
    found: Any,
    operations: Sequence[Operation],
    prompts: Sequence[Text],
    which: int,
    arguments: Arguments,
) -> None:
    ids, log_probs, gap, ended = subject.say(operations, prompts, which, arguments["max_new_tokens"])
    if gap < TIE:
        told.ties += 1
        return
    told.same(f"{what} tokens", found.tokens, [told.word(token) for token in ids])
    if len(found.log_probs) == len(log_probs):
        told.near(f"{what} log-probabilities", found.log_probs, log_probs)
    told.same(f"{what} end", found.ended, ended)


def steer(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """Every cell of the sweep beside its baseline."""
    prompts = texts(subject, arguments)
    operations, count = arguments["interventions"], arguments.get("max_new_tokens", 0)
    layers = numbers(arguments["layers"], subject.plain.layers)
    baselines = [subject.run(operations, prompts, which) for which in range(len(prompts))]
    cells = {(run.prompt, run.layer, run.factor) for run in result.runs}
    factors = sorted({float(factor) for factor in as_list(arguments["factors"])})
    wanted = {(which, layer, factor) for which in range(len(prompts)) for layer in layers for factor in factors}
    told.same("cells", cells, wanted | {(which, None, 0.0) for which in range(len(prompts))})
    for run in result.runs:
        then: dict[Place, Edit] = {}
        if run.layer is not None:
            vector = subject.by.vector(arguments["vector"], run.layer)
            asked = arguments.get("positions", "all")
            then = {("layers_output", run.layer): _push(run.factor * vector, prompts[run.prompt], asked)}
            state = baselines[run.prompt].states["layers_output", run.layer][-1]
            if state.any():
                told.near("push", run.push, abs(run.factor) * vector.norm() / state.norm())
            else:
                told.same("push", run.push, None)
        base = normal(baselines[run.prompt].logits[-1])
        expected = normal(subject.run(operations, prompts, run.prompt, then=then).logits[-1])
        what = f"prompt {run.prompt} layer {run.layer} factor {run.factor}"
        told.near(f"{what} kl", run.kl, divergence(expected, base))
        told.top(what, run.top, expected)
        told.followed(what, run.targets, expected, words(arguments))
        if count:
            ids, _, gap, _ = subject.say(operations, prompts, run.prompt, count, then)
            text(subject, told, f"{what} text", run.text, ids, gap)


def _push(vector: Tensor, prompt: Text, asked: Any) -> Edit:
    """Adds a vector at positions, and at new tokens where they go on."""

    def edit(came: Tensor, seen: States) -> Tensor:
        new = range(len(prompt.ids), len(came)) if goes_on(as_list(asked), last=True) else ()
        changed = came.clone()
        changed[[*prompt.at(asked), *new]] += vector
        return changed

    return edit


def make_vector(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """The length of each layer's direction; what it is shows where later calls add it."""
    if arguments["method"] == "alignment_search":
        _aligned(subject, arguments, result, told)
        return
    by = subject.by
    if arguments["method"] == "embedding_difference":
        sides = {side: arguments[side] for side in ("positive", "negative") if side in arguments}
        found = {-1: by.vector(sides, -1)}
    else:
        runs = [_runs(subject, arguments, side) for side in ("positive", "negative") if side in arguments]
        means = [
            [torch.stack([_taken(*run, layer, arguments) for run in of_side]) for of_side in runs]
            for layer in range(subject.plain.layers)
        ]
        found = {
            layer: sides[0].mean(0) - (sides[1].mean(0) if len(sides) > 1 else 0) for layer, sides in enumerate(means)
        }
    told.near("norms", result.card.norms, torch.stack([vector.norm() for vector in found.values()]))
    by.vectors[arguments["name"]] = found


def _runs(subject: Subject, arguments: Arguments, side: str) -> list[tuple[Text, States]]:
    """The prompts of a side with their states, the interventions made."""
    prompts = texts(subject, arguments, side)
    operations = arguments["interventions"]
    return [(one, subject.run(operations, prompts, which).states) for which, one in enumerate(prompts)]


def _taken(text: Text, states: States, layer: int, arguments: Arguments) -> Tensor:
    """The mean state of a prompt at the positions asked for."""
    at = text.at(without_first(arguments.get("positions", "last"), text))
    return states["layers_output", layer][at].mean(0)


def _aligned(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """The accuracies of pairs that measure, with nothing put in and with the whole state, the interventions made."""
    sources = _runs(subject, arguments, "negative")
    bases = texts(subject, arguments, "positive")
    tokens = [first_tokens(told.tokenizer, [answer])[-1] for answer in arguments["answers"]]
    choices = sorted(set(tokens))
    place: Place = ("layers_output", arguments["layers"])
    right: list[list[bool]] = [[], []]
    for which in range(1, len(bases), 2):
        text, states = sources[which]
        state = states[place][text.at(arguments["positions"])[-1]]
        swap: dict[Place, Edit] = {place: put([bases[which].at(arguments["positions"])[-1]], state)}
        for found, then in zip(right, (None, swap), strict=True):
            logits = subject.run(arguments["interventions"], bases, which, then=then).logits[-1]
            found.append(choices[int(logits[choices].argmax())] == tokens[which])
    (row,) = result.aligned
    expected = torch.tensor(right).double().mean(-1)
    told.near("accuracies", [row.unpatched, row.whole], expected)
