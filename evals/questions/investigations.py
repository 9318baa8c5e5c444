"""Investigations of several steps on smollm2-135m: effects beside headlines, circuits beside their complements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from evals.plain import Edits, Plain
from evals.question import Choice, Head, Number, Parts, Question, Value

GIVEN = "When Mary and John went to the store, John gave a drink to"
INDIRECT, SUBJECT = " Mary", " John"
INDIRECT_AT = 1
SEARCHED = range(18, 30)
TOLD = {
    GIVEN: (INDIRECT, SUBJECT),
    "When Tom and James went to the park, James gave a ball to": (" Tom", " James"),
    "When Anna and Peter went to the school, Peter gave a book to": (" Anna", " Peter"),
    "When David and Sarah went to the office, Sarah gave a letter to": (" David", " Sarah"),
}
"""Each prompt with the name that completes it and the other."""
UNTOLD = (
    "When Alice and Paul went to the store, Mark gave a drink to",
    "When Mark and Anna went to the park, Jack gave a ball to",
    "When Jack and Tom went to the school, Alice gave a book to",
    "When Paul and Alice went to the office, Tom gave a letter to",
)
"""Of the same form, without a repeated name: where their mean stands, nothing tells the names apart."""
CIRCUIT = ("L16H0", "L17H4", "L19H2", "L20H0", "L23H0", "L23H3", "L29H1")
RIVALS = {"first": ("L17H4", "L20H0", "L23H3"), "second": ("L16H2", "L21H7", "L24H2")}
MEDIATED = "L20H0"
CLEAN, CORRUPTED = "The capital of France is", "The capital of Italy is"
CAPITALS = (" Paris", " Rome")
COUNTRY, MIDDLE, LATE, EARLY = 3, 15, 27, 8


def place_of(head: str) -> tuple[int, int]:
    """The layer and number of a head."""
    layer, number = head[1:].split("H")
    return int(layer), int(number)


def _difference(plain: Plain, prompt: str, names: tuple[str, str], edits: Edits | None = None) -> float:
    logits = plain.logits(prompt, edits)[-1].double()
    return float(logits[plain.token(names[0])] - logits[plain.token(names[1])])


def _replace(columns: Sequence[slice], by: Tensor | None, states: Tensor) -> Tensor:
    """States with the columns of heads replaced at every position; by zeros without others."""
    states = states.clone()
    for at in columns:
        states[:, at] = 0 if by is None else by[:, at]
    return states


def _edits(plain: Plain, heads: Sequence[str], by: Mapping[int, Tensor] | None = None) -> Edits:
    columns: dict[int, list[slice]] = {}
    for layer, head in map(place_of, heads):
        columns.setdefault(layer, []).append(plain.columns(head))
    return {
        plain.mixed(layer): partial(_replace, replaced, None if by is None else by[layer])
        for layer, replaced in columns.items()
    }


def _changes(plain: Plain, sets: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The change of the logit difference after `GIVEN` with the outputs of each set of heads zero."""
    names = (INDIRECT, SUBJECT)
    base = _difference(plain, GIVEN, names)
    return {name: _difference(plain, GIVEN, names, _edits(plain, heads)) - base for name, heads in sets.items()}


def _change(plain: Plain, head: str) -> float:
    return _changes(plain, {head: [head]})[head]


def suppressing_head(plain: Plain) -> Value:
    """The head without which the logit difference is highest."""
    found = _changes(plain, {f"L{at}H{head}": [f"L{at}H{head}"] for at in SEARCHED for head in range(plain.heads)})
    head = max(found, key=found.__getitem__)
    return {"head": head, "raised": found[head]}


def headline_head(plain: Plain) -> Value:
    """The head that attends most to the indirect object from the last token, and its effect."""
    found = plain.patterns(GIVEN)[SEARCHED.start :, :, -1, INDIRECT_AT]
    layer, head = divmod(int(found.argmax()), plain.heads)
    name = f"L{SEARCHED.start + layer}H{head}"
    change = _change(plain, name)
    return {
        "head": name,
        "probability": float(found.max()),
        "change": change,
        "verdict": SUPPORTS if change < 0 else OPPOSES,
    }


def complement(plain: Plain) -> Value:
    """Faithfulness of the circuit, completeness as that of all other heads, and whether these carry the behaviour."""
    places = [plain.mixed(at) for at in range(plain.depth)]
    other = [plain.read(prompt, places) for prompt in UNTOLD]
    means = {layer: torch.stack([states[layer] for states in other]).mean(0) for layer in range(plain.depth)}
    every = [f"L{layer}H{head}" for layer in range(plain.depth) for head in range(plain.heads)]
    rest = [name for name in every if name not in CIRCUIT]

    def mean(replaced: Sequence[str]) -> float:
        edits = _edits(plain, replaced, means)
        return sum(_difference(plain, prompt, names, edits) for prompt, names in TOLD.items()) / len(TOLD)

    whole, none = mean([]), mean(every)
    alone, without = ((mean(replaced) - none) / (whole - none) for replaced in (rest, CIRCUIT))
    return {
        "faithfulness": alone,
        "completeness": without,
        "verdict": "the other heads carry it too" if without > 0.5 else "the other heads do not carry it",
    }


def rivals(plain: Plain) -> Value:
    """The change without either set of heads, and the one that matters more."""
    found = _changes(plain, RIVALS)
    return {**found, "verdict": max(found, key=lambda name: abs(found[name]))}


def mediated(plain: Plain) -> Value:
    """A head's own contribution to the logit difference, the change without it, and the path through which it acts."""
    layer, head = place_of(MEDIATED)
    mixed, last = plain.read(GIVEN, [plain.mixed(layer), plain.layer(plain.depth - 1)])
    columns = plain.columns(head)
    written = plain.model.model.layers[layer].self_attn.o_proj.weight[:, columns].double() @ mixed[-1, columns].double()
    norm, unembedding = plain.model.model.norm, plain.model.lm_head.weight.double()
    scale = (last[-1].double().square().mean() + norm.variance_epsilon).rsqrt()
    direction = unembedding[plain.token(INDIRECT)] - unembedding[plain.token(SUBJECT)]
    direct, change = float(written * scale * norm.weight.double() @ direction), _change(plain, MEDIATED)
    return {"direct": direct, "change": change, "verdict": DIRECT if abs(direct) > abs(change) / 2 else MEDIATED_WORDS}


def carrier(plain: Plain) -> Value:
    """The recovery by the clean state at either position, and the claim that it supports."""
    place = plain.layer(MIDDLE)
    (clean,) = plain.read(CLEAN, [place])
    low, high = (_difference(plain, prompt, CAPITALS) for prompt in (CORRUPTED, CLEAN))

    def put(at: int, states: Tensor) -> Tensor:
        states = states.clone()
        states[at] = clean[at]
        return states

    found = {
        name: (_difference(plain, CORRUPTED, CAPITALS, {place: partial(put, at)}) - low) / (high - low)
        for name, at in (("country", COUNTRY), ("last", -1))
    }
    return {**found, "claim": "A" if found["country"] > found["last"] else "B"}


def readable_late(plain: Plain) -> Value:
    """The change of the logit difference by the difference of two countries' states, added early and late."""
    found: dict[str, float] = {}
    for name, layer in (("early", EARLY), ("late", LATE)):
        place = plain.layer(layer)
        (one,), (other,) = (plain.read(prompt, [place]) for prompt in (CLEAN, CORRUPTED))
        added = (one - other)[COUNTRY]

        def add(states: Tensor, added: Tensor = added) -> Tensor:
            states = states.clone()
            states[COUNTRY] += added
            return states

        found[name] = _difference(plain, CORRUPTED, CAPITALS, {place: add}) - _difference(plain, CORRUPTED, CAPITALS)
    verdict = "early only" if abs(found["late"]) < abs(found["early"]) / 4 else "early and late"
    return {**found, "verdict": verdict}


SUPPORTS, OPPOSES = "it supports the answer", "it works against the answer"
DIRECT, MEDIATED_WORDS = "mostly directly", "mostly through later layers"
_METRIC = f"the logit of {INDIRECT!r} minus that of {SUBJECT!r} after {GIVEN!r}"
_ZERO = "with its output (before the output projection) zero at every position"
_LAYERS = f"layers {SEARCHED.start} to {SEARCHED.stop - 1}"
_SETS = f"the first set is {', '.join(RIVALS['first'])}, the second {', '.join(RIVALS['second'])}"
_CAPITAL = f"the logit of {CAPITALS[0]!r} minus that of {CAPITALS[1]!r}"

QUESTIONS = (
    Question(
        "suppressing-head",
        f"Which head of {_LAYERS} works most against {_METRIC}, and how far does that difference rise {_ZERO}?",
        Parts({"head": Head(), "raised": Number(absolute=0.05)}),
        suppressing_head,
    ),
    Question(
        "headline-head",
        f"In {GIVEN!r}, which head of {_LAYERS} attends most from the last token to {INDIRECT!r} (position "
        f"{INDIRECT_AT}), and with which probability? How far does {_METRIC} change {_ZERO} (negative if it falls), "
        "and does the head support that answer?",
        Parts(
            {
                "head": Head(),
                "probability": Number(absolute=0.01),
                "change": Number(absolute=0.05),
                "verdict": Choice((SUPPORTS, OPPOSES)),
            }
        ),
        headline_head,
    ),
    Question(
        "circuit-complement",
        f"The clean prompts are {'; '.join(map(repr, TOLD))}. The metric is the logit of the name that completes each "
        f"({', '.join(names[0] for names in TOLD.values())}) minus that of the name that is repeated, in the mean. A "
        "head is ablated where its output (before the output projection) at every position is the mean at that "
        f"position over {'; '.join(map(repr, UNTOLD))}. The circuit is {', '.join(CIRCUIT)}. On a scale from 0 (all "
        "heads of all layers ablated) to 1 (none), what is the metric with all heads but the circuit ablated "
        "(faithfulness), what with the circuit alone ablated (completeness), and do the other heads carry more than "
        "half of the behaviour?",
        Parts(
            {
                "faithfulness": Number(absolute=0.02),
                "completeness": Number(absolute=0.02),
                "verdict": Choice(("the other heads carry it too", "the other heads do not carry it")),
            }
        ),
        complement,
    ),
    Question(
        "rival-sets",
        f"Two sets of heads are claimed to carry {_METRIC}: {_SETS}. How far does it change with the outputs (before "
        "the output projection) of a set's heads zero together at every position, for each set (negative if it "
        "falls), and which matters more?",
        Parts(
            {
                "first": Number(absolute=0.05),
                "second": Number(absolute=0.05),
                "verdict": Choice(("first", "second")),
            }
        ),
        rivals,
    ),
    Question(
        "direct-or-mediated",
        f"How much does {MEDIATED} add at the last position to {_METRIC} through the residual stream alone (the final "
        f"norm's scale frozen), and how far does that difference change {_ZERO} (negative if it falls)? It acts "
        "directly if the first is more than half of the second in size.",
        Parts(
            {
                "direct": Number(absolute=0.03),
                "change": Number(absolute=0.05),
                "verdict": Choice((DIRECT, MEDIATED_WORDS)),
            }
        ),
        mediated,
    ),
    Question(
        "two-claims",
        f"The clean prompt is {CLEAN!r}, the corrupted one {CORRUPTED!r}, the metric {_CAPITAL}. Claim A: after layer "
        f"{MIDDLE} the country's token (position {COUNTRY}) still carries the answer; claim B: the last token already "
        "does. What is the recovery (0: corrupted, 1: clean) with the clean residual stream after that layer put into "
        "the corrupted run at the country, and at the last token? Which claim is supported?",
        Parts({"country": Number(absolute=0.02), "last": Number(absolute=0.02), "claim": Choice(("A", "B"))}),
        carrier,
    ),
    Question(
        "readable-late",
        f"The residual stream at position {COUNTRY} after {CLEAN!r} minus that after {CORRUPTED!r} is a direction that "
        f"tells the countries apart after layer {EARLY} and after layer {LATE}. How far does {_CAPITAL} change in the "
        f"corrupted prompt if the difference after layer {EARLY} is added there at position {COUNTRY}, and if that "
        f"after layer {LATE} is? The later direction is causal too if its effect is at least a quarter of the earlier "
        "one's.",
        Parts(
            {
                "early": Number(absolute=0.05),
                "late": Number(absolute=0.05),
                "verdict": Choice(("early only", "early and late")),
            }
        ),
        readable_late,
    ),
)
