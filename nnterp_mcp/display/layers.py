"""Parts that several figures share: tokens by layer, targets by layer, means with their spread, names of tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from nnterp_mcp.display.figure import Colours, Curve, Curves, Heatmap, visible
from nnterp_mcp.formatting import elided, spread

MOST_LAYERS = 64
"""Rows of a picture whose cells hold text."""

EMBEDDINGS = -1.0
"""The x value of the embeddings on an axis of layers."""

_TOKEN = 18
"""Characters of a token in a cell."""

_BYTES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")
"""Names of tokens that are bytes."""

_UNFINISHED = re.compile("\ufffd+$")
"""The replacement character, by which a tokenizer decodes an incomplete character."""

_ENDINGS = {1: "st", 2: "nd", 3: "rd"}

PROBABILITY = Colours("probability", 0.0, 1.0)


def token_table(
    title: str,
    across: str,
    columns: Sequence[str],
    layers: Mapping[str, Sequence[tuple[str, float]]],
    focus: int = 0,
) -> Heatmap:
    """Tokens by layer with their probabilities as colours, the first layer at the bottom as the stream flows upwards.

    Args:
        title: The panel's title.
        across: The label of the x axis.
        columns: The columns' names.
        layers: By the layer's name, a token with its probability for each column; of many, some are shown.
        focus: The column at which a page opens, on top.
    """
    names = list(layers)
    rows = [names[at] for at in spread(range(len(names)), [0, len(names) - 1], MOST_LAYERS)][::-1]
    return Heatmap(
        title=title,
        across=across,
        down="layer",
        columns=columns,
        rows=rows,
        values=[[p for _, p in layers[row]] for row in rows],
        colours=PROBABILITY,
        labels=[[visible(elided(token, _TOKEN)) for token, _ in layers[row]] for row in rows],
        focus=(0, focus),
    )


@dataclass(frozen=True)
class Followed:
    """A target over the layers.

    Attributes:
        name: Its name.
        x: The layers.
        values: Probability and rank at each.
        of: The curve that it is a control of, where it is one.
    """

    name: str
    x: Sequence[float]
    values: Sequence[tuple[float, float]]
    of: str | None = None


def followed_panels(title: str, across: str, curves: Sequence[Followed]) -> list[Curves]:
    """Probabilities, and ranks, which show what happens where all probabilities are close to 0."""

    def drawn(part: int, least: float) -> list[Curve]:
        return [
            Curve(
                one.name,
                one.x,
                [max(least, value[part]) for value in one.values],
                role="measured" if one.of is None else "control",
                of=one.of,
            )
            for one in curves
        ]

    return [
        Curves(title, across, "probability", drawn(0, 0.0), span=(0.0, 1.0)),
        Curves(f"{title}: rank", across, "rank", drawn(1, 1.0), ranks=True),
    ]


def target_names(categories: Mapping[str, Sequence[str]], prompts: int = 1) -> list[str]:
    """The categories by their tokens, "Paris"; of several prompts, by their names with the first prompt's tokens."""
    names: list[str] = []
    for name, tokens in categories.items():
        spaced = [token for token in tokens if token.startswith((" ", "▁"))] or tokens  # as they follow a text
        words = "/".join(list(dict.fromkeys(token.strip(" ▁") or token for token in spaced))[:2])
        words = elided(words or name, 24)
        names.append(words if prompts == 1 or words == name else f"{elided(name, 20)} ({words}, …)")
    return names


def text_of(tokens: Sequence[str]) -> str:
    """The text of consecutive tokens by their names, those that are bytes decoded."""

    def decoded(found: re.Match[str]) -> str:
        try:
            return bytes.fromhex(found[0].replace("<0x", "").replace(">", "")).decode()
        except UnicodeDecodeError:
            return found[0]

    return _BYTES.sub(decoded, "".join(tokens))


def mean_curve(name: str, x: Sequence[float], samples: Sequence[Sequence[float]]) -> Curve:
    """Means of probabilities with a band of one standard deviation, cut at 0 and 1; no band around single ones.

    Args:
        name: The curve's name.
        x: The x values.
        samples: The samples at each x.
    """
    means = [fmean(values) for values in samples]
    if all(len(values) == 1 for values in samples):
        return Curve(name, x, means)
    deviations = [pstdev(values) for values in samples]
    return Curve(
        name,
        x,
        means,
        low=[max(0.0, mean - sd) for mean, sd in zip(means, deviations, strict=True)],
        high=[min(1.0, mean + sd) for mean, sd in zip(means, deviations, strict=True)],
    )


def on_axis(layers: Sequence[int | None]) -> tuple[list[float], dict[float, str]]:
    """The x values of layers, None being the embeddings, and the tick labels of those that are no numbers."""
    places = [EMBEDDINGS if layer is None else float(layer) for layer in layers]
    return places, {EMBEDDINGS: "emb."} if EMBEDDINGS in places else {}


def ordinals(count: int) -> list[str]:
    """The names of ranks, of which there are at most 20: 1st, 2nd, 3rd, 4th."""
    return [f"{rank}{_ENDINGS.get(rank, 'th')}" for rank in range(1, count + 1)]


def unbroken(text: str) -> str:
    """A generated text without the bytes of a character that its last token began."""
    return _UNFINISHED.sub("…", text)
