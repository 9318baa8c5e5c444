"""Controls of edits of features: the same edits of matched random features, and along random directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.activity import read_activity
from nnterp_mcp.experiments.features.calibration_texts import TEXTS
from nnterp_mcp.experiments.features.patching import draw_matched_features
from nnterp_mcp.model.text.positions import resolve_averaged
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.request.dictionaries import ROW_METHODS, parse_row
from nnterp_mcp.request.operations import EditFeatures, Operation
from nnterp_mcp.request.positions import PositionSpec
from nnterp_mcp.request.selectors import resolve_indices, resolve_layers
from nnterp_mcp.worker.dictionaries import LoadedDictionary

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

CONTROLS = 5
"""Matched sets of features, and as many random directions."""

_Key = tuple[str, int | None]
"""A dictionary's name and layer."""


@dataclass(frozen=True)
class EditControls:
    """The interventions of a request with the edits of features in them replaced by controls.

    Attributes:
        matched: With those of matched random features, once for each draw.
        drawn: The features of each draw.
        directions: With moves along a random direction, as far as the edits move the states, once for each seed.
    """

    matched: list[list[Operation]]
    drawn: list[list[int]]
    directions: list[list[Operation]]


def built_in_texts(bench: Bench) -> list[EncodedPrompt]:
    """The built-in texts, each cut to what the model reads."""
    most = bench.longest_prompt()
    texts = encode_prompts(bench.model.tokenizer, TEXTS, bench.handle)
    return [replace(text, ids=text.ids[:most]) for text in texts]


def control_edits(
    bench: Bench, operations: Sequence[Operation], prompts: Sequence[EncodedPrompt]
) -> EditControls | None:
    """Draws the controls of the edits of features; None where there are none, or they are controls themselves.

    Args:
        bench: The model and its dictionaries.
        operations: The interventions of the request.
        prompts: Its prompts.
    """
    edits = [one for one in operations if isinstance(one, EditFeatures)]
    if not edits or any(edit.random is not None for edit in edits):
        return None
    features: dict[_Key, dict[int, None]] = {}
    positions: dict[_Key, dict[int, set[int]]] = {}
    for edit in edits:
        numbers = resolve_indices(edit.prompts, len(prompts), "prompt", "the request")
        reached = {number: resolve_averaged(edit.positions, prompts[number]) for number in numbers}
        for key in _keys(bench, edit):
            features.setdefault(key, {}).update(dict.fromkeys(_features(bench, key, edit)))
            for number, here in reached.items():
                positions.setdefault(key, {}).setdefault(number, set()).update(here)
    draws = {key: _draw(bench, key, list(some), prompts, positions[key]) for key, some in features.items()}
    count = min(map(len, draws.values()))

    def swap(operation: Operation, number: int) -> list[Operation]:
        if not isinstance(operation, EditFeatures):
            return [operation]
        swapped: list[Operation] = []
        for key in _keys(bench, operation):
            instead = dict(zip(features[key], draws[key][number], strict=True))
            drawn = tuple(instead[one] for one in _features(bench, key, operation))
            layers = None if key[1] is None else (key[1],)
            swapped.append(operation.model_copy(update={"layers": layers, "features": drawn}))
        return swapped

    return EditControls(
        [[new for one in operations for new in swap(one, number)] for number in range(count)],
        [[feature for drawn in draws.values() for feature in drawn[number]] for number in range(count)],
        [[_along_random(one, seed) for one in operations] for seed in range(CONTROLS)],
    )


def draw_as_active(
    bench: Bench,
    loaded: LoadedDictionary,
    features: Sequence[int],
    prompts: Sequence[EncodedPrompt],
    positions: Sequence[Sequence[int]],
) -> list[list[int]]:
    """Draws sets of random features that are about as often and as strongly active as the features of a set.

    Args:
        bench: The model.
        loaded: The dictionary.
        features: The set.
        prompts: The prompts in which activity is counted; in the built-in texts too if a feature is silent in them.
        positions: For each prompt, the positions that count.
    """
    counts, sums = _count(bench, loaded, prompts, positions)
    if not bool(counts[list(features)].all()):
        texts = built_in_texts(bench)
        more, added = _count(bench, loaded, texts, [range(1, len(text.ids)) for text in texts])
        counts, sums = counts + more, sums + added
    return draw_matched_features(counts, sums, features, CONTROLS)


def _count(
    bench: Bench, loaded: LoadedDictionary, prompts: Sequence[EncodedPrompt], positions: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, " latent"], Float[Tensor, " latent"]]:
    """At how many positions each feature is active, and the sum of its activations there."""
    work = Workload(prompts, batch_tokens=bench.batch_tokens)
    found = read_activity(bench.model, work, loaded.dictionary, loaded.place, loaded.writes, positions)
    return found.totals()


def _along_random(operation: Operation, seed: int) -> Operation:
    return operation.model_copy(update={"random": seed}) if isinstance(operation, EditFeatures) else operation


def _keys(bench: Bench, edit: EditFeatures) -> list[_Key]:
    """The dictionaries that an edit acts on."""
    if edit.layers is None:
        return [(edit.dictionary, None)]
    layers = resolve_layers(edit.layers, bench.model.num_layers, bench.handle)
    return [(edit.dictionary, layer) for layer in layers]


def _features(bench: Bench, key: _Key, edit: EditFeatures) -> list[int]:
    latents = bench.dictionaries.find(*key).dictionary.latents
    return resolve_indices(edit.features, latents, "feature", edit.dictionary)


def _draw(
    bench: Bench,
    key: _Key,
    features: Sequence[int],
    prompts: Sequence[EncodedPrompt],
    positions: Mapping[int, set[int]],
) -> list[list[int]]:
    edited = [prompts[number] for number in positions]
    rows = [replace(prompt, index=row) for row, prompt in enumerate(edited)]
    return draw_as_active(
        bench, bench.dictionaries.find(*key), features, rows, [sorted(positions[n]) for n in positions]
    )


def matched_rows(
    bench: Bench, name: str, prompts: Sequence[EncodedPrompt], positions: Sequence[PositionSpec]
) -> dict[int, Float[Tensor, " hidden"]] | None:
    """The rows of matched random features, for a vector that is the row of a feature; None for another vector.

    Args:
        bench: The model, its vectors and dictionaries.
        name: The vector's name.
        prompts: The prompts.
        positions: The positions in them at which activity is counted.

    Returns:
        By feature, its row as the vector is one; empty where the dictionary is gone or no other feature is active.
    """
    card = bench.vectors.find(name, bench.identity, bench.handle)
    if card.method not in ROW_METHODS:
        return None
    named, layer, feature = parse_row("".join(card.request["positive"]))
    with suppress(InvalidRequest):
        loaded = bench.dictionaries.find(named, layer)
        found = draw_as_active(bench, loaded, [feature], prompts, [resolve_averaged(positions, one) for one in prompts])
        rows = loaded.dictionary.decoder if card.method == "decoder_row" else loaded.dictionary.encoder
        return {drawn: rows[drawn].float().cpu() for (drawn,) in found}
    return {}
