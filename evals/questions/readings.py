"""What the model says, and what its layers hold."""

from __future__ import annotations

import torch

from evals.plain import Plain, divergence
from evals.question import LAYER, Choice, Count, Number, Question, Token

HAMLET = "To be or not to"
ENTROPIES = ("Once upon a", "I think that this film is")
CHAT = "What is the capital of Italy? Answer with one word."
SENTENCE = "Mechanistic interpretability reverse-engineers neural networks."
CAPITAL = "The capital of France is"
SKIPPED = (20, 21)
BANKS = ("They sat on the bank of the river", "She put her money in the bank of England")
WORD = " bank"
COMPARED = 15
TARGET = "king king\n1135 1135\nhello hello\n?"


def leading_layer(plain: Plain) -> int:
    """The first layer of those from which on the lens has the last layer's token on top."""
    states = torch.stack([states[-1] for states in plain.read(HAMLET, [plain.layer(at) for at in range(plain.depth)])])
    top = plain.lens(states).argmax(-1)
    others = (top != top[-1]).nonzero()
    return int(others[-1]) + 1 if len(others) else 0


def furthest_layer(plain: Plain) -> int:
    """The layer whose lens is furthest from the model's answer."""
    states = torch.stack([states[-1] for states in plain.read(CAPITAL, [plain.layer(at) for at in range(plain.depth)])])
    return int(divergence(plain.log_probs(CAPITAL), plain.lens(states)).argmax())


def open_prompt(plain: Plain) -> str:
    """The prompt after which the distribution of the next token is wider."""

    def entropy(prompt: str) -> float:
        log_probs = plain.log_probs(prompt)
        return -float((log_probs.exp() * log_probs).sum())

    return max(ENTROPIES, key=entropy)


def chat_answer(plain: Plain) -> str:
    """The most likely first token of a reply."""
    text = plain.tokenizer.apply_chat_template(
        [{"role": "user", "content": CHAT}], add_generation_prompt=True, tokenize=False
    )
    return plain.text(plain.log_probs(text).argmax())


def token_count(plain: Plain) -> int:
    """How many tokens a sentence is."""
    return len(plain.ids(SENTENCE))


def skipped_probability(plain: Plain) -> float:
    """The probability of the answer where two layers hand on what they get."""
    first, last = SKIPPED
    (given,) = plain.read(CAPITAL, [plain.layer(first - 1)])
    return float(plain.log_probs(CAPITAL, {plain.layer(last): lambda states: given})[plain.token(" Paris")].exp())


def sense_cosine(plain: Plain) -> float:
    """The cosine of the states of one word in two sentences."""
    states: list[torch.Tensor] = []
    for prompt in BANKS:
        (found,) = plain.read(prompt, [plain.layer(COMPARED)])
        states.append(found[plain.ids(prompt).index(plain.token(WORD))].double())
    return float(torch.cosine_similarity(states[0], states[1], dim=0))


def outlier_layer(plain: Plain) -> int:
    """The layer after which the first token's state has grown most."""
    norms = torch.stack(
        [states[0].norm() for states in plain.read(CAPITAL, [plain.layer(at) for at in range(plain.depth)])]
    )
    return int((norms[1:] / norms[:-1]).argmax()) + 1


def patchscope_layer(plain: Plain) -> int:
    """The first layer of those from which on a patched-in state makes the target say what follows the source."""
    at = plain.ids(CAPITAL).index(plain.token(" France"))
    own = plain.logits(CAPITAL)[at].argmax()
    sources = plain.read(CAPITAL, [plain.layer(layer) for layer in range(plain.depth)])
    first = plain.depth
    for layer in reversed(range(plain.depth)):

        def put(states: torch.Tensor, source: torch.Tensor = sources[layer][at]) -> torch.Tensor:
            return torch.cat([states[:-1], source[None]])

        if plain.log_probs(TARGET, {plain.layer(layer): put}).argmax() != own:
            break
        first = layer
    return first


QUESTIONS = (
    Question(
        "leading-layer",
        f"In the logit lens at the last position of {HAMLET!r}, from which layer on, at it and at every later layer, "
        "is the token on top the one that the model gives in the end?",
        LAYER,
        leading_layer,
    ),
    Question(
        "furthest-layer",
        f"At the last position of {CAPITAL!r}, after which layer is KL(the model's output || the logit lens) largest?",
        LAYER,
        furthest_layer,
    ),
    Question(
        "open-prompt",
        "After which of two prompts does the distribution of the next token have the higher entropy: "
        f"{ENTROPIES[0]!r} or {ENTROPIES[1]!r}?",
        Choice(ENTROPIES),
        open_prompt,
    ),
    Question(
        "chat-answer",
        f"A user's message in a chat, through the model's chat template, is {CHAT!r}. Which token is the most likely "
        "first token of the assistant's reply?",
        Token(),
        chat_answer,
    ),
    Question("token-count", f"How many tokens is {SENTENCE!r}?", Count("tokens"), token_count),
    Question(
        "skipped-probability",
        f"What is the probability of the token ' Paris' after {CAPITAL!r} if layers {SKIPPED[0]} to {SKIPPED[1]} are "
        "skipped, their output being their input?",
        Number(relative=0.03),
        skipped_probability,
    ),
    Question(
        "sense-cosine",
        f"What is the cosine between the residual stream's states after layer {COMPARED} at the token {WORD!r} in "
        f"{BANKS[0]!r} and in {BANKS[1]!r}?",
        Number(absolute=0.005),
        sense_cosine,
    ),
    Question(
        "outlier-layer",
        f"In {CAPITAL!r} the residual stream of the first token grows huge at one layer. After which layer is its norm "
        "largest in proportion to its norm after the layer before?",
        LAYER,
        outlier_layer,
    ),
    Question(
        "patchscope-layer",
        f"Patchscope: the state of ' France' in {CAPITAL!r} after layer n replaces the state of the last token of "
        f"{TARGET!r} after the same layer n. From which n on, for it and every later layer, is the most likely next "
        "token of that target the one that the model predicts after ' France' in the source? (\\n is a line break.)",
        LAYER,
        patchscope_layer,
    ),
)
