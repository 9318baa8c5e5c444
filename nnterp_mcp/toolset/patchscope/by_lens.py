"""The states that are patched, read by a fitted lens and by the logit lens."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.engine.readouts.next_token import Readout
from nnterp_mcp.experiments.logit_lens import read_given_states
from nnterp_mcp.experiments.patched_target import SourceReadings
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.toolset.patchscope.result import SourceReading, StateReading


def read_sources(
    model: StandardizedTransformer,
    readings: Sequence[SourceReading],
    sources: SourceReadings,
    layers: Sequence[int],
    lens: LensTranslation,
    categories: Sequence[Sequence[Sequence[int]]],
) -> list[SourceReading]:
    """The readings of sources, with what both lenses read from the states themselves.

    Args:
        model: The model.
        readings: The sources under every patch.
        sources: Their states.
        layers: The source layers, in ascending order.
        lens: The fitted lens.
        categories: For each source, the token ids of each tracked category.

    Raises:
        InvalidRequest: The lens is of another model, or lacks a layer.
        Unsupported: The model's lens is not exact, or another machine serves it.
    """
    states = sources.states[:, [sources.layers.index(layer) for layer in layers]]
    own, plain = (read_given_states(model, states, layers, one, categories=categories) for one in (lens, None))

    def state(at: tuple[int, int]) -> StateReading:
        return StateReading(
            layer=layers[at[1]],
            top=_top(own, at, model),
            tracked=_tracked(own, at),
            plain_top=_top(plain, at, model),
            plain_tracked=_tracked(plain, at),
        )

    return [
        reading.model_copy(update={"states": [state((source, at)) for at in range(len(layers))]})
        for source, reading in enumerate(readings)
    ]


def _top(readout: Readout, at: tuple[int, int], model: StandardizedTransformer) -> tuple[str, float]:
    return token_text(model.tokenizer, int(readout.top_ids[at][0])), float(readout.top_probs[at][0])


def _tracked(readout: Readout, at: tuple[int, int]) -> list[tuple[float, int]]:
    return list(zip(readout.target_probs[at].tolist(), map(int, readout.target_ranks[at].tolist()), strict=True))
