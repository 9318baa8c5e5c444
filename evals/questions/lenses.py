"""Lenses that translate a state by the mean Jacobian of what later layers make of it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evals.plain import Plain, hooked
from evals.question import Choice, Number, Parts, Question

FITTED = ("start cat red one dog blue", "start two gold fox pink six", "start owl blue ten cat red")
PROMPT, ANSWER, OTHER = "start cat red one", "dog", "cold"
LAYER = 0
CLEARER, NO_CLEARER = "the Jacobian lens", "the logit lens"


def _jacobian(plain: Plain, prompt: str) -> Float[Tensor, "out in"]:
    """The sum of a state's effects on the last layer's states, in the mean over the inner positions of one prompt."""
    first, last = plain.layer(LAYER), plain.layer(plain.depth - 1)
    (states,) = plain.read(prompt, [first])

    def end(given: Tensor) -> Tensor:
        found: list[Tensor] = []

        def keep(made: Tensor) -> Tensor:
            found.append(made)
            return made

        with hooked({first: lambda came: given, last: keep}):
            plain.model(torch.tensor([plain.ids(prompt)]), use_cache=False)
        return found[0]

    whole: Any = torch.autograd.functional.jacobian(end, states)
    return whole[1:-1, :, 1:-1].sum(0).mean(1)


def _fitted(plain: Plain) -> Float[Tensor, "out in"]:
    return torch.stack([_jacobian(plain, prompt) for prompt in FITTED]).mean(0)


def early_reading(plain: Plain) -> dict[str, int | float | str]:
    """The answer's probability at the first layer, through each lens."""
    (states,) = plain.read(PROMPT, [plain.layer(LAYER)])
    read = torch.stack([_fitted(plain) @ states[-1], states[-1]])
    through, plainly = plain.lens(read)[:, plain.token(ANSWER)].exp().tolist()
    return {"jacobian": through, "logit": plainly, "verdict": CLEARER if through > plainly else NO_CLEARER}


def without_direction(plain: Plain) -> float:
    """The answer's probability once the first layer's states have nothing along the direction of two tokens."""
    head = plain.model.lm_head.weight
    direction = _fitted(plain).T @ (head[plain.token(ANSWER)] - head[plain.token(OTHER)])
    direction = direction / direction.norm()

    def cut(states: Tensor) -> Tensor:
        along = (states @ direction)[:, None] * direction
        return torch.cat([states[:1], (states - along)[1:]])

    return float(plain.log_probs(PROMPT, {plain.layer(LAYER): cut})[plain.token(ANSWER)].exp())


_LENS = (
    f"Fit a Jacobian lens on the prompts {', '.join(map(repr, FITTED))}, every position of each but the first and the "
    "last counted. "
)

QUESTIONS = (
    Question(
        "early-reading",
        f"{_LENS}What probability does it give {ANSWER!r} as the next token after {PROMPT!r} at layer {LAYER}, and "
        "what the logit lens? Through which of the two is the answer more likely there?",
        Parts(
            {
                "jacobian": Number(absolute=0.01),
                "logit": Number(absolute=0.01),
                "verdict": Choice((CLEARER, NO_CLEARER)),
            }
        ),
        early_reading,
        "planted-pairs",
    ),
    Question(
        "without-direction",
        f"{_LENS}Take the direction at layer {LAYER} that the lens reads as {ANSWER!r} rather than {OTHER!r} (the "
        "difference of their unembeddings, read through the lens). With the states after that layer projected off it "
        f"at every position but the first, what is the probability of {ANSWER!r} after {PROMPT!r}?",
        Number(absolute=0.01),
        without_direction,
        "planted-pairs",
    ),
)
"""The lenses, on a model in which what a later layer reads is planted."""
