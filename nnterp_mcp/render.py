"""Notes that answers share: active interventions, shared target tokens, one number per layer, and what is left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from nnterp_mcp.formatting import coarse, elided, plural, quoted
from nnterp_mcp.request.selectors import SHARED_PAIRS

_SHARED = 3
"""Pairs of categories with a common first token that an answer names."""

PER_LAYER = 5
"""Tokens that a number of `by_layer` takes, about."""

_LABELS = 4
"""Interventions that a note names one by one."""


def shared_tokens(shared: Mapping[str, Sequence[str]]) -> list[str]:
    """The notes that name target categories with a common first token, under `a and b`; many pairs are counted."""
    notes = [
        f"{elided(pair, 80)} share the first token {quoted(elided(tokens[0]))}: it counts for both."
        for pair, tokens in list(shared.items())[:_SHARED]
    ]
    if len(shared) > _SHARED:
        others = plural(len(shared) - _SHARED, "more pair")
        notes.append(f"{others} of categories share first tokens{', or more' if len(shared) >= SHARED_PAIRS else ''}.")
    return notes


def on_categories(categories: Collection[str], shared: Mapping[str, Sequence[str]], shown: int, part: str) -> list[str]:
    """The notes on target categories: which share a first token, and how many are not shown.

    Args:
        categories: The categories.
        shared: The tokens that two categories share, under `a and b`.
        shown: The most that are shown.
        part: The part of the run that has all.
    """
    others, count = len(categories) - shown, len(categories)
    more = [f"{others} of {count} target categories not shown: read_run part={part}."] if others > 0 else []
    return [*shared_tokens(shared), *more]


def in_force(interventions: Sequence[str], where: str = "") -> list[str]:
    """The note that names the interventions of a call: one line, or none.

    Args:
        interventions: Each with its operation, site, layers, heads, positions, steps and source.
        where: In which passes they act, if not in all of the call.
    """
    if not interventions:
        return []
    others = len(interventions) - _LABELS
    more = f"; and {others} more (read_run part=record)" if others > 0 else ""
    return [f"Active interventions{where}: {'; '.join(interventions[:_LABELS])}{more}."]


def on_means(first_left_out: bool, warning: str | None = None) -> list[str]:
    """The notes on a mean over tokens: which token dominates it, and that it leaves out first tokens.

    Args:
        first_left_out: The positions were `all`, which leaves out each prompt's first token.
        warning: The warning of a token whose state dominates the mean.
    """
    left = "'all' leaves each prompt's first token, often an attention sink, out of means; '0:' includes it."
    return [*([warning] if warning else []), *([left] if first_left_out else [])]


def by_layer(layers: Sequence[int], numbers: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """One number for each layer, under names that say for which layers.

    Args:
        layers: The layers, in ascending order.
        numbers: For each name the numbers, in the order of the layers.
    """
    if len(layers) == 1:
        span = f"layer {layers[0]}"
    elif list(layers) == list(range(layers[0], layers[-1] + 1)):
        span = f"layers {layers[0]} to {layers[-1]}"
    else:
        span = f"layers {', '.join(map(str, layers))}"
    return {f"{elided(name, 40)}, {span}": [coarse(value) for value in values] for name, values in numbers.items()}


def left_out(count: int, noun: str, part: str, instead: str = "") -> list[str]:
    """The note that says where `read_run` has what an answer does not show, or none where it shows all.

    Args:
        count: How many are not shown.
        noun: One of them.
        part: The part of the run that has them.
        instead: Arguments that choose others to be shown.
    """
    choose = f", or choose {instead}" if instead else ""
    return [f"{plural(count, noun)} not shown: read_run part={part}{choose}."] if count > 0 else []
