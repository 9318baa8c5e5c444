"""`make_vector` by distributed alignment search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.targets import get_first_tokens
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.alignment_search import AlignmentSearch, Interchange, find_answers
from nnterp_mcp.experiments.steering_vectors import Directions
from nnterp_mcp.experiments.untrained_model import make_untrained
from nnterp_mcp.formatting import plural
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.request.vectors import ReadTokens
from nnterp_mcp.toolset.make_vector.params import MakeVectorParams
from nnterp_mcp.toolset.make_vector.result import AlignedLayer, AlignmentFacts, DirectionFacts, MakeVectorResult
from nnterp_mcp.toolset.make_vector.saved import save_vector
from nnterp_mcp.worker.job import Finished, Job

if TYPE_CHECKING:
    from nnterp_mcp.engine.forward import Plan
    from nnterp_mcp.worker.workbench import Bench

_STEPS = 100
_BATCH = 16
_RATE = 0.05
_DRAWS = 20

_LEAST = 8
"""Pairs: half of them train, half of them measure."""


@dataclass(frozen=True)
class _Searched:
    """A layer's figures, and its subspace."""

    facts: AlignedLayer
    rows: list[list[float]]


def search_alignment(bench: Bench, params: MakeVectorParams, job: Job) -> MakeVectorResult:
    """Trains a subspace at each layer on every second pair, and measures it on the others."""
    made = _pair(bench, params)
    pairs, own = made.pairs, not params.answers
    train, test = pairs[::2], pairs[1::2]
    layers = resolve_layers(params.layers, bench.model.num_layers, bench.handle)
    untrained, why = _untrained(bench.model, params.seed)
    choices = sorted({pair.answer for pair in pairs})
    known = {pair.base.text for pair in train} | {pair.source.text for pair in train}
    tokenizer = bench.model.tokenizer

    def search(group: Sequence[int]) -> Iterator[_Searched]:
        for at in group:
            place = Place("layers_output", layers[at])
            searching = AlignmentSearch(
                bench.model,
                place,
                choices,
                steps=_STEPS,
                rate=_RATE,
                batch=_BATCH,
                seed=params.seed,
                of_bases=made.of_bases,
                of_sources=made.of_sources,
            )
            found = searching.search(train, test, params.dimensions, _DRAWS, untrained, job.progress)
            facts = AlignedLayer(
                layer=layers[at],
                accuracy=found.accuracy,
                certainty=found.certainty,
                whole=found.whole,
                unpatched=found.unpatched,
                randoms=found.randoms,
                shuffled=found.shuffled,
                untrained=found.untrained,
                untrained_unpatched=found.untrained_unpatched,
            )
            yield _Searched(facts, found.subspace.T.tolist())

    def assemble(finished: Finished[_Searched]) -> MakeVectorResult:
        done = [one.facts.layer for one in finished.items]
        found = Directions([], torch.cat([torch.tensor(one.rows) for one in finished.items]))
        card, replaced = save_vector(
            bench, params, found, ReadTokens(positions=params.positions, pool="last"), layers=done
        )
        return MakeVectorResult(
            model=bench.handle,
            card=card,
            replaced=None if replaced is None else replaced.made,
            interventions=list(made.of_bases.labels),
            directions=[DirectionFacts(layer=layer, norm=1.0) for layer in done],
            alignment=AlignmentFacts(
                train=len(train),
                test=len(test),
                dimensions=params.dimensions,
                answers=[token_text(tokenizer, token) for token in choices],
                own=own,
                shared=sum(pair.base.text in known or pair.source.text in known for pair in test),
                no_untrained=why,
            ),
            aligned=[one.facts for one in finished.items],
        )

    return job.in_parts([[at] for at in range(len(layers))], _Searched, search, assemble, "layers")


@dataclass(frozen=True)
class _Pairs:
    """The pairs of a call, with its interventions for either prompt of each."""

    pairs: list[Interchange]
    of_bases: Plan
    of_sources: Plan


def _pair(bench: Bench, params: MakeVectorParams) -> _Pairs:
    count = len(params.positive)
    if len(params.negative) != count or count < _LEAST:
        raise InvalidRequest(
            f"{plural(count, 'base prompt')} and {plural(len(params.negative), 'source prompt')} came.",
            f"Give {_LEAST} pairs or more: bases as positive, the source of each as negative.",
        )
    if len(params.answers) not in (0, count):
        raise InvalidRequest(f"{plural(len(params.answers), 'answer')} came for {count} pairs: give one for each.")
    bench.admit(2 * count)
    bases, sources = bench.encode(params.positive), bench.encode(params.negative)
    answers = [get_first_tokens(answer, bench.model)[-1] for answer in params.answers]
    of_bases, of_sources = (bench.plan(params.interventions, prompts) for prompts in (bases, sources))
    answers = answers or find_answers(bench.model, sources, of_sources)
    if len(set(answers)) < 2:
        raise InvalidRequest(
            "every pair has the same answer, so that no variable makes a difference.", "Vary the source prompts."
        )
    pairs = [
        Interchange(
            base,
            source,
            resolve_positions(params.positions, base)[-1],
            resolve_positions(params.positions, source)[-1],
            answer,
        )
        for base, source, answer in zip(bases, sources, answers, strict=True)
    ]
    return _Pairs(pairs, of_bases, of_sources)


def _untrained(model: StandardizedTransformer, seed: int) -> tuple[StandardizedTransformer | None, str | None]:
    """A randomly initialised model, or the reason why there is none."""
    try:
        return make_untrained(model, seed), None
    except Unsupported as error:
        return None, str(error)
