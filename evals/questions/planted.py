"""Investigations of tiny models whose mechanism is planted: where a plausible answer is wrong, the weights say so."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from evals.plain import Edits, Plain
from evals.question import Choice, Head, Number, Parts, Question

REPEATED, OTHER = "red cat two owl hot red cat two", "red cat two fox hot red cat two"
COPIED = "owl"
SAID, ANSWER = "red two fox hot one", "fox"
HOT, COLD, BEGUN = "hot", "cold", "start cat"
COLOURS = (("red", "gold"), ("blue", "pink"))
AMOUNTS = (("six", "ten"), ("one", "two"))
ATTRIBUTE_LAYER, FACTOR = 0, 0.5
PAIRED, FOLLOWER = "red fox one dog red fox one", "dog"
NOISE, NOISE_ANSWER = "red fox one dog red cat", "one"


def _log_prob(plain: Plain, prompt: str, answer: str, edits: Edits | None = None) -> float:
    return float(plain.log_probs(prompt, edits)[plain.token(answer)])


def _without(plain: Plain, heads: Sequence[tuple[int, int]]) -> Edits:
    """Edits that make the outputs of heads zero at every position."""

    columns: dict[int, list[slice]] = {}
    for layer, head in heads:
        columns.setdefault(layer, []).append(plain.columns(head))
    return {plain.mixed(layer): partial(_silence, silent) for layer, silent in columns.items()}


def _silence(columns: Sequence[slice], states: Tensor) -> Tensor:
    states = states.clone()
    for at in columns:
        states[:, at] = 0
    return states


def _changes(plain: Plain, prompt: str, answer: str) -> dict[str, float]:
    """The change of the answer's log-probability without each head alone."""
    base = _log_prob(plain, prompt, answer)
    return {
        f"L{layer}H{head}": _log_prob(plain, prompt, answer, _without(plain, [(layer, head)])) - base
        for layer in range(plain.depth)
        for head in range(plain.heads)
    }


def copying_pair(plain: Plain) -> dict[str, int | float | str]:
    """The two heads that copying needs, one in each layer, and the loss without the later one."""
    found = _changes(plain, REPEATED, COPIED)
    first, second = (min((name for name in found if name[1] == str(layer)), key=found.__getitem__) for layer in (0, 1))
    return {"first": first, "second": second, "change": found[second]}


def copying_route(plain: Plain) -> dict[str, int | float | str]:
    """The input of the copying head that the earlier head feeds: each is recomputed alone without that head."""
    layer, head = 1, 1
    part = plain.model.model.layers[layer].self_attn
    (silent,) = plain.read(REPEATED, [plain.layer(0)], _without(plain, [(0, 2)]))
    normed = plain.model.model.layers[layer].input_layernorm(silent)
    base, changes = _log_prob(plain, REPEATED, COPIED), dict[str, float]()
    for name, projection in (("queries", part.q_proj), ("keys", part.k_proj), ("values", part.v_proj)):
        own = projection(normed)[:, plain.columns(head)]

        def hook(module: object, args: object, output: Tensor, own: Tensor = own) -> Tensor:
            output[0, :, plain.columns(head)] = own
            return output

        handle = projection.register_forward_hook(hook)
        changes[name] = _log_prob(plain, REPEATED, COPIED) - base
        handle.remove()
    route = min(changes, key=changes.__getitem__)
    return {"route": route, "change": changes[route]}


def suppressor(plain: Plain) -> dict[str, int | float | str]:
    """The head whose removal raises the answer most, and by how much."""
    found = _changes(plain, SAID, ANSWER)
    head = max(found, key=found.__getitem__)
    return {"head": head, "raised": found[head]}


def attended(plain: Plain) -> dict[str, int | float | str]:
    """The head that attends most from the last token to the answer's, and what its removal changes."""
    at = SAID.split().index(ANSWER)
    layer, head = divmod(int(plain.patterns(SAID)[:, :, -1, at].argmax()), plain.heads)
    found = _changes(plain, SAID, ANSWER)
    name = f"L{layer}H{head}"
    cause = max(found, key=lambda one: abs(found[one])) == name
    return {"head": name, "change": found[name], "verdict": "it has the largest effect" if cause else NOT_CAUSE}


NOT_CAUSE = "another head has a larger effect"


def readable(plain: Plain) -> dict[str, int | float | str]:
    """The change of the log-odds of hot to cold by half of each attribute's difference of means, and the verdict."""
    shifts, place = dict[str, float](), plain.layer(ATTRIBUTE_LAYER)
    for name, (one, other) in (("colour", COLOURS), ("amount", AMOUNTS)):
        means = [
            torch.stack([plain.read(f"{BEGUN} {word}", [plain.layer(ATTRIBUTE_LAYER)])[0][-1] for word in words]).mean(
                0
            )
            for words in (one, other)
        ]
        added = FACTOR * (means[0] - means[1])

        def add(states: Tensor, added: Tensor = added) -> Tensor:
            return states + added

        shifts[name] = _odds(plain, {place: add}) - _odds(plain)
    causal = max(shifts, key=lambda name: abs(shifts[name]))
    return {**shifts, "causal": causal}


def _odds(plain: Plain, edits: Edits | None = None) -> float:
    found = plain.log_probs(f"{BEGUN} {BEGUN.split()[0]}", edits)
    return float(found[plain.token(HOT)] - found[plain.token(COLD)])


def looks_copied(plain: Plain) -> dict[str, int | float | str]:
    """The probability of the repeated word, the change without any head at all, and the verdict."""
    every = [(layer, head) for layer in range(plain.depth) for head in range(plain.heads)]
    base = _log_prob(plain, PAIRED, FOLLOWER)
    change = _log_prob(plain, PAIRED, FOLLOWER, _without(plain, every)) - base
    at = PAIRED.split().index(FOLLOWER)
    looking = float(plain.patterns(PAIRED)[:, :, -1, at].max())
    return {
        "log_probability": base,
        "change": change,
        "verdict": "attention copies it" if looking > 0.5 and change < -1 else "attention does not copy it",
    }


def no_circuit(plain: Plain) -> dict[str, int | float | str]:
    """In a model of random weights: the head with the largest effect, its effect, and whether one exceeds all "
    "others."""
    found = _changes(plain, NOISE, NOISE_ANSWER)
    order = sorted(found, key=lambda name: -abs(found[name]))
    twice = abs(found[order[0]]) >= 2 * abs(found[order[1]])
    return {
        "head": order[0],
        "change": found[order[0]],
        "verdict": "one head dominates" if twice else "no head dominates",
    }


_ZERO = "with its output (before the output projection) zero at every position"
_LOG = "the log-probability, in nats, of"

QUESTIONS = (
    Question(
        "copying-pair",
        f"After {REPEATED!r}, which head of layer 0 and which of layer 1 lowers {_LOG} {COPIED!r} most {_ZERO}, each "
        "alone, and how far does that of layer 1 change it (negative if lower)?",
        Parts({"first": Head(), "second": Head(), "change": Number(absolute=0.02)}),
        copying_pair,
        "planted-copier",
    ),
    Question(
        "copying-route",
        f"After {REPEATED!r}, L0H2 feeds L1H1. Of L1H1's queries, keys and values, which one changes {_LOG} "
        f"{COPIED!r} most "
        "if it alone is computed (at all positions) as it would be with the output of L0H2 zero, and by how much?",
        Parts({"route": Choice(("queries", "keys", "values")), "change": Number(absolute=0.02)}),
        copying_route,
        "planted-copier",
    ),
    Question(
        "planted-suppressor",
        f"After {SAID!r}, which head suppresses {ANSWER!r} most, and how far does {_LOG} it rise {_ZERO}?",
        Parts({"head": Head(), "raised": Number(absolute=0.02)}),
        suppressor,
        "planted-speaker",
    ),
    Question(
        "attended-or-used",
        f"In {SAID!r}, which head attends most from the last token to {ANSWER!r}? How far does {_LOG} {ANSWER!r} "
        f"change {_ZERO}, and is there a head whose removal changes it more?",
        Parts(
            {
                "head": Head(),
                "change": Number(absolute=0.02),
                "verdict": Choice(("it has the largest effect", NOT_CAUSE)),
            }
        ),
        attended,
        "planted-speaker",
    ),
    Question(
        "readable-or-causal",
        f"At layers_output of layer {ATTRIBUTE_LAYER}, at the last token, take the mean over {BEGUN!r} followed by "
        f"each of {', '.join(COLOURS[0])} less that over the same followed by {', '.join(COLOURS[1])} as the direction "
        f"of colour, and with {', '.join(AMOUNTS[0])} less {', '.join(AMOUNTS[1])} that of amount. How far does adding "
        f"{FACTOR:g} times each at every position of that layer change the log-odds of {HOT!r} to {COLD!r} (in nats) "
        f"after {BEGUN + ' ' + BEGUN.split()[0]!r}? Both are read perfectly by a linear probe: which one is causal?",
        Parts(
            {
                "colour": Number(absolute=0.02),
                "amount": Number(absolute=0.02),
                "causal": Choice(("colour", "amount")),
            }
        ),
        readable,
        "planted-attributes",
    ),
    Question(
        "looks-copied",
        f"The model completes {PAIRED!r} by {FOLLOWER!r}. What is {_LOG} that, how far does it change with the outputs "
        "of all heads of both layers zero, and is it attention that copies the word?",
        Parts(
            {
                "log_probability": Number(absolute=0.02),
                "change": Number(absolute=0.02),
                "verdict": Choice(("attention copies it", "attention does not copy it")),
            }
        ),
        looks_copied,
        "planted-pairs",
    ),
    Question(
        "no-circuit",
        f"After {NOISE!r}, which head changes {_LOG} {NOISE_ANSWER!r} most {_ZERO}, by how much, and is that at least "
        "twice as much as any other head?",
        Parts(
            {
                "head": Head(),
                "change": Number(absolute=0.01),
                "verdict": Choice(("one head dominates", "no head dominates")),
            }
        ),
        no_circuit,
        "planted-random",
    ),
)
