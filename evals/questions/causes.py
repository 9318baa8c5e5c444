"""What causes an answer: activation patching, ablation, attribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from evals.plain import Edits, Place, Plain, divergence, hooked
from evals.question import LAYER, Head, Number, Question, Token

CLEAN = "The capital of France is"
CORRUPTED = "The capital of Italy is"
ANSWER, WRONG = " Paris", " Rome"
COUNTRY = 3
NOISED = (29, 1)
ABLATED = 8


def _difference(plain: Plain, prompt: str, edits: Edits | None = None) -> float:
    logits = plain.logits(prompt, edits)[-1].double()
    return float(logits[plain.token(ANSWER)] - logits[plain.token(WRONG)])


def _put(states: Tensor, at: int, source: Tensor, columns: slice = slice(None)) -> Tensor:
    states = states.clone()
    states[at, columns] = source[at, columns]
    return states


def last_useful_layer(plain: Plain) -> int:
    """The last layer after which the clean state of the country brings back half of the answer."""
    half = (_difference(plain, CORRUPTED) + _difference(plain, CLEAN)) / 2
    places = [plain.layer(at) for at in range(plain.depth)]
    useful = [
        layer
        for layer, (place, clean) in enumerate(zip(places, plain.read(CLEAN, places), strict=True))
        if _difference(plain, CORRUPTED, {place: lambda states, clean=clean: _put(states, COUNTRY, clean)}) > half
    ]
    return max(useful, default=0)


def _patched_heads(plain: Plain) -> Float[Tensor, "layer head"]:
    """The logit difference of the corrupted run with each head's clean output at the last position."""
    places = [plain.mixed(at) for at in range(plain.depth)]
    found = torch.zeros(plain.depth, plain.heads)
    for layer, (place, clean) in enumerate(zip(places, plain.read(CLEAN, places), strict=True)):
        for head in range(plain.heads):

            def change(states: Tensor, clean: Tensor = clean, head: int = head) -> Tensor:
                return _put(states, -1, clean, plain.columns(head))

            found[layer, head] = _difference(plain, CORRUPTED, {place: change})
    return found


def restoring_head(plain: Plain) -> str:
    """The head whose clean output brings back most."""
    layer, head = divmod(int(_patched_heads(plain).argmax()), plain.heads)
    return f"L{layer}H{head}"


def noised_difference(plain: Plain) -> float:
    """The logit difference of the clean run with one head's output from the corrupted one."""
    layer, head = NOISED
    (corrupted,) = plain.read(CORRUPTED, [plain.mixed(layer)])
    edits: Edits = {plain.mixed(layer): lambda states: _put(states, -1, corrupted, plain.columns(head))}
    return _difference(plain, CLEAN, edits)


def ablated_divergence(plain: Plain) -> float:
    """KL(as it is || one MLP silent) of the next token."""
    return float(divergence(plain.log_probs(CLEAN), plain.log_probs(CLEAN, {plain.mlp(ABLATED): torch.zeros_like})))


def _direct(plain: Plain, parts: Sequence[Place]) -> list[float]:
    """What parts of the last state give to the logit difference, the final norm's scale held."""
    last, *written = plain.read(CLEAN, [plain.layer(plain.depth - 1), *parts])
    norm, head = plain.model.model.norm, plain.model.lm_head.weight.double()
    scale = (last[-1].double().square().mean() + norm.variance_epsilon).rsqrt()
    direction = head[plain.token(ANSWER)] - head[plain.token(WRONG)]
    return [float(states[-1].double() * scale * norm.weight.double() @ direction) for states in written]


def direct_mlp(plain: Plain) -> int:
    """The layer whose MLP writes most of the logit difference."""
    given = _direct(plain, [plain.mlp(at) for at in range(plain.depth)])
    return given.index(max(given))


def direct_attention(plain: Plain) -> float:
    """What the attention that writes most writes of the logit difference."""
    return max(_direct(plain, [plain.attention(at) for at in range(plain.depth)]))


def sloping_token(plain: Plain) -> str:
    """The token whose gradient × embedding is largest."""
    found: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        found.append(states.detach().requires_grad_())
        return found[0]

    embedding = Place(plain.model.get_input_embeddings())
    with hooked({embedding: keep}):
        logits = plain.model(torch.tensor([plain.ids(CLEAN)]), use_cache=False).logits[0, -1]
        (slope,) = torch.autograd.grad(logits[plain.token(ANSWER)] - logits[plain.token(WRONG)], found)
    return plain.text(plain.ids(CLEAN)[int((slope * found[0]).sum(-1).argmax())])


_PAIR = f"The clean prompt is {CLEAN!r}, the corrupted one {CORRUPTED!r}"
_METRIC = f"the logit of {ANSWER!r} minus that of {WRONG!r} after the prompt"

QUESTIONS = (
    Question(
        "last-useful-layer",
        f"{_PAIR}; the metric is {_METRIC}. The clean residual stream after layer n at the country's position is put "
        "into the corrupted run. What is the largest n for which that restores more than half of the metric's "
        "difference between the runs?",
        LAYER,
        last_useful_layer,
    ),
    Question(
        "restoring-head",
        f"{_PAIR}; the metric is {_METRIC}. Of all heads of all layers, each alone, whose clean output (before the "
        "output projection) at the last position restores most of the metric if it is put into the corrupted run?",
        Head(),
        restoring_head,
    ),
    Question(
        "noised-difference",
        f"{_PAIR}. What is {_METRIC} in the clean run if the output of head {NOISED[1]} of layer {NOISED[0]} (before "
        "the output projection) at the last position comes from the corrupted run?",
        Number(absolute=0.05),
        noised_difference,
    ),
    Question(
        "ablated-divergence",
        f"How large is KL(the model as it is || the model with the output of layer {ABLATED}'s MLP zero at every "
        f"position), in nats, of the next token after {CLEAN!r}?",
        Number(relative=0.02),
        ablated_divergence,
    ),
    Question(
        "direct-mlp",
        f"Direct logit attribution (the final norm's scale held): which layer's MLP writes most of {_METRIC} "
        f"{CLEAN!r} at the last position?",
        LAYER,
        direct_mlp,
    ),
    Question(
        "direct-attention",
        f"Direct logit attribution (the final norm's scale held): how much of {_METRIC} {CLEAN!r} is written at the "
        "last position by the attention (all heads of a layer together) that writes most, in logits?",
        Number(absolute=0.05),
        direct_attention,
    ),
    Question(
        "sloping-token",
        f"Gradient × input: for which token of {CLEAN!r} is the gradient of {_METRIC}, with respect to the token's "
        "embedding, times the embedding itself (summed over the width) largest?",
        Token(),
        sloping_token,
    ),
)
