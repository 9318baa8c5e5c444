"""Which heads look where, and what they carry."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from evals.plain import Edits, Plain
from evals.question import Head, Number, Question, Token

CAPITAL = "The capital of France is"
COUNTRIES = "Rome is the capital of Italy. Paris is the capital of"
CODES = "A7 K2 Q9 B4 Z1; A7 K2 Q9 B4"
READER = (23, 4)
COPIERS = ((17, 3), (17, 4), (17, 5), (18, 6))
LENGTH = 50
_SEQUENCES = 6
_SEED = 20


def silence(plain: Plain, *heads: tuple[int, int]) -> Edits:
    """Edits that put zeros in place of what heads give to the output projection."""

    def zero(layer: int) -> Edits:
        def change(states: Tensor) -> Tensor:
            states = states.clone()
            for head in [head for at, head in heads if at == layer]:
                states[:, plain.columns(head)] = 0
            return states

        return {plain.mixed(layer): change}

    edits: Edits = {}
    for layer, _ in heads:
        edits |= zero(layer)
    return edits


def _repeated(plain: Plain, back: int) -> Float[Tensor, "layer head"]:
    """The mean attention from a token of the second copy of random tokens to so many positions before."""
    dealer = torch.Generator().manual_seed(_SEED)
    words = torch.tensor(sorted(set(range(len(plain.tokenizer))) - set(plain.tokenizer.all_special_ids)))
    scores: list[Tensor] = []
    for _ in range(_SEQUENCES):
        copy = words[torch.randperm(len(words), generator=dealer)[:LENGTH]].tolist()
        pattern = plain.patterns([*copy, *copy])
        queries = torch.arange(LENGTH, 2 * LENGTH)
        scores.append(pattern[:, :, queries, queries - back].mean(-1))
    return torch.stack(scores).mean(0)


def _strongest(scores: Float[Tensor, "layer head"]) -> str:
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return f"L{layer}H{head}"


def induction_head(plain: Plain) -> str:
    """The head that attends most to what followed the token before."""
    return _strongest(_repeated(plain, LENGTH - 1))


def induction_strength(plain: Plain) -> float:
    """How much that head does."""
    return float(_repeated(plain, LENGTH - 1).max())


def previous_head(plain: Plain) -> str:
    """The head that attends most to the token before."""
    return _strongest(_repeated(plain, 1))


def read_token(plain: Plain) -> str:
    """The token to which a head attends most at the end of a prompt."""
    layer, head = READER
    return plain.text(plain.ids(CAPITAL)[int(plain.patterns(CAPITAL)[layer, head, -1].argmax())])


def written_without_reader(plain: Plain) -> str:
    """The first token that the model writes without that head."""
    return plain.text(plain.write(COUNTRIES, 1, silence(plain, READER))[0])


def copied_without_copiers(plain: Plain) -> str:
    """The top token where induction heads are silent."""
    return plain.text(plain.log_probs(CODES, silence(plain, *COPIERS)).argmax())


_RANDOM = (
    f"Sequences of {LENGTH} different random tokens are each written twice in a row. At the tokens of the second copy, "
    "in the mean,"
)

QUESTIONS = (
    Question(
        "induction-head",
        f"{_RANDOM} which head attends most to the token that followed the same token in the first copy?",
        Head(),
        induction_head,
    ),
    Question(
        "induction-strength",
        f"{_RANDOM} how much attention (0 to 1) does the strongest induction head give to the token that followed the "
        "same token in the first copy?",
        Number(absolute=0.05),
        induction_strength,
    ),
    Question("previous-head", f"{_RANDOM} which head attends most to the token before?", Head(), previous_head),
    Question(
        "read-token",
        f"To which token does head {READER[1]} of layer {READER[0]} attend most at the last position of {CAPITAL!r}?",
        Token(),
        read_token,
    ),
    Question(
        "written-without-reader",
        f"What the model writes greedily after {COUNTRIES!r} begins with ' France'. With which token does it begin "
        f"if the output of head {READER[1]} of layer {READER[0]} (before the output projection) is zero at every "
        "position?",
        Token(),
        written_without_reader,
    ),
    Question(
        "copied-without-copiers",
        f"Which token is the most likely after {CODES!r} if the outputs of heads 3, 4 and 5 of layer 17 and head 6 of "
        "layer 18 (before the output projection) are zero at every position?",
        Token(),
        copied_without_copiers,
    ),
)
