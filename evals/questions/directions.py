"""What directions in the residual stream do, and what is read along them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from evals.plain import Plain, divergence
from evals.question import LAYER, Count, Number, Question

OPINION = "I think that this film is"
LOVE, HATE = " love", " hate"
STEERED = 14
FACTORS = (1, 2, 4, 8, 16)
GLAD = (
    "I love this film.",
    "What a great day.",
    "She was very happy.",
    "A wonderful meal.",
    "He smiled with joy.",
    "The best gift ever.",
    "We had so much fun.",
    "It was a lovely walk.",
    "They won the final match.",
    "The garden looks beautiful.",
    "Her speech was brilliant.",
    "The guests enjoyed the party.",
)
SAD = (
    "I hate that book.",
    "What an awful night.",
    "He was very sad.",
    "A terrible journey.",
    "She cried with pain.",
    "The worst idea ever.",
    "They had so much trouble.",
    "It was a dreadful evening.",
    "We lost the last game.",
    "The kitchen smells disgusting.",
    "His work was poor.",
    "The neighbours feared the storm.",
)
PROBED = (0, 5, 10, 21)
MOOD = 22
MOOD_FACTOR = 2


def _pushed(plain: Plain, layer: int, vector: Float[Tensor, " width"]) -> Float[Tensor, " token"]:
    return plain.log_probs(OPINION, {plain.layer(layer): lambda states: states + vector})


def _words(plain: Plain) -> Float[Tensor, " width"]:
    return plain.embedding[plain.token(LOVE)] - plain.embedding[plain.token(HATE)]


def steering_growth(plain: Plain) -> float:
    """How many times as large the divergence is at twice the factor."""
    before = plain.log_probs(OPINION)
    low, high = (float(divergence(_pushed(plain, STEERED, f * _words(plain)), before)) for f in (4, 8))
    return high / low


def flipping_factor(plain: Plain) -> int:
    """The smallest factor at which another token is the most likely."""
    before = plain.log_probs(OPINION).argmax()
    flips = [f for f in FACTORS if _pushed(plain, STEERED, f * _words(plain)).argmax() != before]
    return min(flips, default=0)


def _last(plain: Plain, prompts: Sequence[str], layers: Sequence[int]) -> Float[Tensor, "layer prompt width"]:
    """The states at the last positions of prompts."""
    places = [plain.layer(at) for at in layers]
    states = [torch.stack([read[-1] for read in plain.read(prompt, places)]) for prompt in prompts]
    return torch.stack(states, 1).double()


def mood_divergence(plain: Plain) -> float:
    """The divergence by the difference of two sets' mean states."""
    (glad,), (sad,) = (_last(plain, prompts, [MOOD]).mean(1) for prompts in (GLAD, SAD))
    vector = MOOD_FACTOR * (glad - sad).float()
    return float(divergence(_pushed(plain, MOOD, vector), plain.log_probs(OPINION)))


def probed_layer(plain: Plain) -> int:
    """The layer where each prompt lies nearest to the mean of its own set most often, made without it."""
    glad, sad = (_last(plain, prompts, PROBED) for prompts in (GLAD, SAD))
    right = [_told_apart(*states) + _told_apart(*reversed(states)) for states in zip(glad, sad, strict=True)]
    return PROBED[right.index(max(right))]


def _told_apart(own: Float[Tensor, "prompt width"], other: Float[Tensor, "prompt width"]) -> int:
    """How many of a set lie nearer to the mean of the rest of it than to the mean of the other set."""
    rest = (own.sum(0) - own) / (len(own) - 1)
    return int(((own - rest).norm(dim=1) < (own - other.mean(0)).norm(dim=1)).sum())


_PUSH = (
    f"The token embedding of {LOVE!r} minus that of {HATE!r}, times a factor, is added to the residual stream after "
    f"layer {STEERED} at every position of {OPINION!r}."
)
_MOODS = f"Group A is {', '.join(map(repr, GLAD))}. Group B is {', '.join(map(repr, SAD))}."

QUESTIONS = (
    Question(
        "steering-growth",
        f"{_PUSH} How many times as large is KL(steered || as it is) of the next token with factor 8 as with factor 4?",
        Number(relative=0.03),
        steering_growth,
    ),
    Question(
        "flipping-factor",
        f"{_PUSH} What is the smallest of the factors {', '.join(map(str, FACTORS))} with which another token becomes "
        "the top token?",
        Count("a factor"),
        flipping_factor,
    ),
    Question(
        "mood-divergence",
        f"{_MOODS} The mean state after layer {MOOD} at the last tokens of A minus that of B, times {MOOD_FACTOR}, is "
        f"added to the residual stream after layer {MOOD} at every position of {OPINION!r}. How large is KL(steered || "
        "as it is) of the next token, in nats?",
        Number(relative=0.03),
        mood_divergence,
    ),
    Question(
        "probed-layer",
        f"{_MOODS} Linear probes (the nearest class mean, cross-validated) tell A from B by the residual stream at the "
        f"last token. After which of the layers {', '.join(map(str, PROBED))} do they tell them best?",
        LAYER,
        probed_layer,
    ),
)
