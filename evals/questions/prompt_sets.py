"""What the model knows over a set of prompts."""

from __future__ import annotations

from evals.plain import Plain
from evals.question import Choice, Number, Question

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Russia": "Moscow",
    "Canada": "Ottawa",
    "Turkey": "Ankara",
    "China": "Beijing",
    "Greece": "Athens",
}


def ask(country: str) -> str:
    """A prompt that a capital's name continues."""
    return f"The capital of {country} is"


def _first(plain: Plain, capital: str) -> int:
    return plain.tokenizer(f" {capital}", add_special_tokens=False)["input_ids"][0]


def unknown_capital(plain: Plain) -> str:
    """The country whose capital falls furthest behind the top token."""

    def lead(country: str) -> float:
        log_probs = plain.log_probs(ask(country))
        return float(log_probs[_first(plain, CAPITALS[country])] - log_probs.max())

    return min(CAPITALS, key=lead)


def mean_probability(plain: Plain) -> float:
    """The mean probability of the capitals' first tokens."""
    known = [
        float(plain.log_probs(ask(country))[_first(plain, capital)].exp()) for country, capital in CAPITALS.items()
    ]
    return sum(known) / len(known)


_SET = f"The prompts are 'The capital of X is' for {', '.join(CAPITALS)}."

QUESTIONS = (
    Question(
        "unknown-capital",
        f"{_SET} For which country is the top token not the first token of its capital's name (with a leading space)?",
        Choice(tuple(CAPITALS)),
        unknown_capital,
    ),
    Question(
        "mean-probability",
        f"{_SET} What is the mean, over the prompts, of the probability of the first token of the capital's name (with "
        "a leading space)?",
        Number(absolute=0.01),
        mean_probability,
    ),
)
