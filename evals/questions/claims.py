"""Claims and circuits of planted models, one of which lacks the mechanism that its attention suggests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evals.plain import Edits, Plain
from evals.question import Choice, Number, Parts, Question

Pairs = Sequence[tuple[str, str, str, str]]
"""Clean and corrupted prompts, with the answer to each."""

ECHO: Pairs = (
    ("red cat two owl hot six cat", "red owl two cat hot six cat", "two", "hot"),
    ("ten dog pink fox blue one dog", "ten fox pink dog blue one dog", "pink", "blue"),
    ("gold six hot cat owl two six", "gold cat hot six owl two six", "hot", "owl"),
    ("fox one red ten dog cold one", "fox ten red one dog cold one", "red", "dog"),
    ("blue owl ten pink six red owl", "blue pink ten owl six red owl", "ten", "six"),
    ("two hot cat gold one fox hot", "two gold cat hot one fox hot", "cat", "one"),
)
PARROT: Pairs = (
    ("red cat two owl hot red cat", "red cat six owl hot red cat", "two", "six"),
    ("ten dog pink fox blue ten dog", "ten dog gold fox blue ten dog", "pink", "gold"),
    ("gold six hot cat owl gold six", "gold six one cat owl gold six", "hot", "one"),
    ("fox one red ten dog fox one", "fox one cold ten dog fox one", "red", "cold"),
    ("blue owl ten pink six blue owl", "blue owl two pink six blue owl", "ten", "two"),
    ("two hot cat gold one two hot", "two hot fox gold one two hot", "cat", "fox"),
)
ECHOING, LOOKING = ((1, 5), (3, 2)), ((3, 1),)
DRIVES, DRIVES_NOT = "supported", "not supported"
ROUTES = ("queries", "keys", "values")
_HALF = 0.5
_NOTHING = 0.05


def _metric(plain: Plain, prompt: str, answer: str, wrong: str, edits: Edits | None = None) -> float:
    logits = plain.logits(prompt, edits)[-1].double()
    return float(logits[plain.token(answer)] - logits[plain.token(wrong)])


def _exchanged(plain: Plain, heads: Sequence[tuple[int, int]], other: str) -> Edits:
    """Edits that give heads their outputs after another prompt, at every position."""
    edits: Edits = {}
    for layer in {layer for layer, _ in heads}:
        (states,) = plain.read(other, [plain.mixed(layer)])

        def exchange(own: Tensor, layer: int = layer, states: Tensor = states) -> Tensor:
            own = own.clone()
            for at in (plain.columns(head) for where, head in heads if where == layer):
                own[:, at] = states[:, at]
            return own

        edits[plain.mixed(layer)] = exchange
    return edits


def _claim(plain: Plain, pairs: Pairs, heads: Sequence[tuple[int, int]]) -> dict[str, int | float | str]:
    """The shares of the gap that an exchange of heads opens and closes, of means over prompts, and the verdict."""
    clean, corrupted, broken, restored = 0.0, 0.0, 0.0, 0.0
    for one, other, answer, wrong in pairs:
        clean += _metric(plain, one, answer, wrong)
        corrupted += _metric(plain, other, answer, wrong)
        broken += _metric(plain, one, answer, wrong, _exchanged(plain, heads, other))
        restored += _metric(plain, other, answer, wrong, _exchanged(plain, heads, one))
    necessity, sufficiency = (clean - broken) / (clean - corrupted), (restored - corrupted) / (clean - corrupted)
    verdict = DRIVES if min(necessity, sufficiency) > _HALF else DRIVES_NOT
    return {"necessity": necessity, "sufficiency": sufficiency, "verdict": verdict}


def echo_claim(plain: Plain) -> dict[str, int | float | str]:
    """The claim that the planted pair copies."""
    return _claim(plain, ECHO, ECHOING)


def parrot_claim(plain: Plain) -> dict[str, int | float | str]:
    """The claim that the head copies that attends as if it did."""
    return _claim(plain, PARROT, LOOKING)


def _edge(plain: Plain, sender: tuple[int, int], receiver: tuple[int, int], route: str, pair: Sequence[str]) -> float:
    """The change of the metric if one input of a head alone reads what another head writes after the other prompt."""
    clean, corrupted, answer, wrong = pair
    layer, head = receiver
    part, columns = plain.model.model.layers[sender[0]].self_attn.o_proj.weight, plain.columns(sender[1])
    written = [
        plain.read(one, [plain.mixed(sender[0])])[0][:, columns] @ part[:, columns].T for one in (clean, corrupted)
    ]
    (stream,) = plain.read(clean, [plain.layer(layer - 1)])
    block = plain.model.model.layers[layer]
    projection = getattr(block.self_attn, f"{route[0]}_proj")
    own = projection(block.input_layernorm(stream - written[0] + written[1]))[:, plain.columns(head)]

    def hook(module: object, args: object, output: Tensor) -> Tensor:
        output[0, :, plain.columns(head)] = own
        return output

    base = _metric(plain, clean, answer, wrong)
    handle = projection.register_forward_hook(hook)
    try:
        return _metric(plain, clean, answer, wrong) - base
    finally:
        handle.remove()


@torch.no_grad()
def echo_edge(plain: Plain) -> dict[str, int | float | str]:
    """The edge between the planted heads that matters."""
    found = {route: _edge(plain, *ECHOING, route, ECHO[0]) for route in ROUTES}
    route = min(found, key=found.__getitem__)
    return {"route": route, "change": found[route]}


@torch.no_grad()
def parrot_edge(plain: Plain) -> dict[str, int | float | str]:
    """The edge that would carry the behaviour if the head that attends so copied, and whether it does."""
    change = _edge(plain, (1, 3), LOOKING[0], "keys", PARROT[0])
    return {"change": change, "verdict": "it carries it" if change < -_NOTHING else NOT_CARRIED}


NOT_CARRIED = "it does not"


def _listed(pairs: Pairs) -> str:
    return "; ".join(f"{clean!r} and {corrupted!r} ({answer}, {wrong})" for clean, corrupted, answer, wrong in pairs)


def _asked(pairs: Pairs) -> str:
    return (
        "Clean and corrupted prompts, with the answer to each in brackets: "
        f"{_listed(pairs)}. The metric is the logit of the clean answer less that of the corrupted one. "
    )


_SHARES = (
    "With their outputs (before the output projection) exchanged for those of the corrupted run at every position of "
    "the clean run, which share of the gap between the metric's means is lost, and with those of the clean run in the "
    "corrupted run, which share is restored? Is the claim supported: do they carry more than half of the gap both "
    "ways, and more than random heads?"
)
_CLAIM = Parts(
    {
        "necessity": Number(absolute=0.02),
        "sufficiency": Number(absolute=0.02),
        "verdict": Choice((DRIVES, DRIVES_NOT)),
    }
)

QUESTIONS = (
    Question(
        "claim-of-two-heads",
        f"{_asked(ECHO)}A claim, from theory alone: L1H5 and L3H2 together drive the clean answer. {_SHARES}",
        _CLAIM,
        echo_claim,
        "planted-echo",
    ),
    Question(
        "claim-from-attention",
        f"{_asked(PARROT)}At the last word, L3H1 attends to the answer: the word that came after this one before. A "
        f"claim, from this pattern alone: L3H1 drives the clean answer. {_SHARES}",
        _CLAIM,
        parrot_claim,
        "planted-parrot",
    ),
    Question(
        "edge-that-carries",
        f"{_asked(ECHO[:1])}Of the edges from L1H5 to L3H2's queries, keys and values (what the one head writes into "
        "the residual stream that this input alone reads), which one changes the metric of the clean run most if it "
        "alone carries what it carries in the corrupted run, and by how much?",
        Parts({"route": Choice(ROUTES), "change": Number(absolute=0.05)}),
        echo_edge,
        "planted-echo",
    ),
    Question(
        "edge-from-attention",
        f"{_asked(PARROT[:1])}L3H1 attends to the word that came after this one before, which it finds by what L1H3 "
        "writes. How far does the metric of the clean run change if the edge from L1H3 to L3H1's keys alone carries "
        "what it carries in the corrupted run? Does that edge carry the behaviour?",
        Parts({"change": Number(absolute=0.05), "verdict": Choice(("it carries it", NOT_CARRIED))}),
        parrot_edge,
        "planted-parrot",
    ),
)
