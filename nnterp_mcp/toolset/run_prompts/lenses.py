"""Fitted lenses next to their controls and the logit lens, over a prompt set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from nnterp_mcp.contract import Measured
from nnterp_mcp.experiments.statistics.bootstrap import Estimate
from nnterp_mcp.experiments.translated_lens.comparison import LensScore, score_lenses
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation, random_like, shuffled
from nnterp_mcp.request.lenses import LensCard
from nnterp_mcp.toolset.run_prompts.result import PLAIN_LENS, TOP, LensPass, PromptRow
from nnterp_mcp.worker.lenses import find_lens

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


@dataclass(frozen=True)
class ComparedLens:
    """A lens among others.

    Attributes:
        name: Its name.
        translation: Its maps; None for the logit lens.
        card: The metadata of a fitted lens.
        of: The fitted lens that it is a control of.
    """

    name: str
    translation: LensTranslation | None = None
    card: LensCard | None = None
    of: str | None = None


PLAIN = ComparedLens(PLAIN_LENS)


def compare_lenses(bench: Bench, names: Sequence[str], tell: Callable[[str], None]) -> list[ComparedLens]:
    """The fitted lenses, the logit lens, and each fitted lens's controls; `tell` is called while one is downloaded."""
    found = [find_lens(bench, name, tell) for name in names]
    fitted = [ComparedLens(card.name, lens, card) for lens, card in filter(None, found)]
    return [*fitted, PLAIN, *(control for lens in fitted for control in _controls(lens))]


def _controls(lens: ComparedLens) -> Iterator[ComparedLens]:
    assert lens.translation is not None
    if len(lens.translation.layers) > 1:
        yield ComparedLens(f"{lens.name}, other layers' maps", shuffled(lens.translation), of=lens.name)
    yield ComparedLens(f"{lens.name}, random maps", random_like(lens.translation), of=lens.name)


def score(
    lenses: Sequence[ComparedLens], categories: Sequence[str], rows: Sequence[PromptRow], layers: Sequence[int]
) -> list[LensPass]:
    """The share of prompts in which each lens has the targets of a category among its top tokens."""
    if len(lenses) == 1 or not rows:
        return []
    ranks = torch.tensor([row.lens_ranks for row in rows])  # prompt, lens, layer, category
    plain = lenses.index(PLAIN)
    return [
        _pass(lens, category, scored, layers)
        for at, category in enumerate(categories)
        for lens, scored in zip(lenses, score_lenses(ranks[..., at].transpose(0, 1), plain, TOP), strict=True)
    ]


def _pass(lens: ComparedLens, category: str, scored: LensScore, layers: Sequence[int]) -> LensPass:
    def layer(index: float) -> int | None:
        return layers[int(index)] if index < len(layers) else None

    first = scored.first
    return LensPass(
        lens=lens.name,
        of=lens.of,
        category=category,
        in_top=[_measured(estimate) for estimate in scored.in_top],
        share=_measured(scored.share),
        gain=_measured(scored.gain),
        first=layer(first.mean),
        first_interval=None if first.low is None or first.high is None else (layer(first.low), layer(first.high)),
    )


def _measured(estimate: Estimate) -> Measured:
    return Measured(**asdict(estimate))
