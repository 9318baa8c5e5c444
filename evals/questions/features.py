"""Features of a dictionary whose meaning is planted: which one is active for what, and which ones matter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evals.plain import Edits, Plain
from evals.planted import DICTIONARY, planted_features
from evals.question import Choice, Count, Number, Parts, Question

WARM = ("start red", "start gold", "cat red", "two gold")
COOL = ("start blue", "start pink", "cat blue", "two pink")
EDITED, ANSWER = "start cat red", "hot"
LAYER = 0
CAUSAL, NOT_CAUSAL = "the model uses it", "the model does not use it"
_NOTHING = 0.005


def _active(plain: Plain, prompt: str) -> Tensor:
    """The activations (position, feature) without the first token."""
    rows, thresholds = planted_features()
    (states,) = plain.read(prompt, [plain.layer(LAYER)])
    before = states[1:].float() @ rows.T
    return before * (before > thresholds)


def _difference(plain: Plain, first: Sequence[str], second: Sequence[str]) -> Tensor:
    one, other = (torch.stack([_active(plain, text).mean(0) for text in texts]).mean(0) for texts in (first, second))
    return one - other


def _change(plain: Plain, feature: int, prompt: str) -> float:
    """The change of the answer's log-probability with a feature zero at every position but the first."""
    rows, thresholds = planted_features()

    def silence(states: Tensor) -> Tensor:
        before = states.float() @ rows[feature]
        active = (before * (before > thresholds[feature]))[:, None]
        active[0] = 0
        return states - active * rows[feature]

    edits: Edits = {plain.layer(LAYER): silence}
    at = plain.token(ANSWER)
    return float(plain.log_probs(prompt, edits)[at] - plain.log_probs(prompt)[at])


def colour_feature(plain: Plain) -> dict[str, int | float | str]:
    """The feature with the largest difference, and what its absence changes."""
    feature = int(_difference(plain, WARM, COOL).argmax())
    return {"feature": feature, "change": _change(plain, feature, EDITED)}


AMOUNT, MANY = 2, "start cat ten"


def amount_feature(plain: Plain) -> dict[str, int | float | str]:
    """The activation of a feature that nothing reads, and what its absence changes."""
    change = _change(plain, AMOUNT, MANY)
    active = float(_active(plain, MANY)[-1, AMOUNT])
    return {"activation": active, "change": change, "verdict": CAUSAL if abs(change) > _NOTHING else NOT_CAUSAL}


_LOADED = f"The folder {DICTIONARY!r} below the model's holds a sparse autoencoder. "

QUESTIONS = (
    Question(
        "colour-feature",
        f"{_LOADED}Which of its features has a mean activation (over tokens but the first, then over prompts) that is "
        f"larger by most over {', '.join(map(repr, WARM))} than over {', '.join(map(repr, COOL))}? With that feature "
        "zero at every position but the first, the reconstruction error kept, how far does the log-probability, in "
        f"nats, of {ANSWER!r} after {EDITED!r} change?",
        Parts({"feature": Count("the feature's index"), "change": Number(absolute=0.02)}),
        colour_feature,
        "planted-attributes",
    ),
    Question(
        "amount-feature",
        f"{_LOADED}How active is its feature {AMOUNT} at the last token of {MANY!r}, and how far does the "
        f"log-probability, in nats, of {ANSWER!r} after it change with that feature zero at every position but the "
        "first? Does the model use it?",
        Parts(
            {
                "activation": Number(absolute=0.05),
                "change": Number(absolute=0.02),
                "verdict": Choice((CAUSAL, NOT_CAUSAL)),
            }
        ),
        amount_feature,
        "planted-attributes",
    ),
)
