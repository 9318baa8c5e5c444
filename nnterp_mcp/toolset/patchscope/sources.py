"""What is put into the target prompt: states of source prompts, or vectors that were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.forward import Plan
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.planning.vectors import resolve_vector
from nnterp_mcp.engine.readouts.targets import FollowedTargets, get_first_tokens
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.activations import read_states
from nnterp_mcp.experiments.logit_lens import likeliest_tokens
from nnterp_mcp.experiments.patchscope import LayerPair, pair_layers
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.request.targets import Target
from nnterp_mcp.toolset.patchscope.params import PatchscopeParams
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


@dataclass(frozen=True)
class Origin:
    """Where a state comes from, and what is tracked for it.

    Attributes:
        words: The strings of each tracked category.
        ids: Their tokens.
        prompt: The number of the source prompt.
        position: The position in it.
        token: The token there, as text.
        answer: The model's own next token, as text.
        vector: The name of the vector that it is instead.
    """

    words: Sequence[Sequence[str]]
    ids: list[list[int]]
    prompt: int | None = None
    position: int | None = None
    token: str | None = None
    answer: str | None = None
    vector: str | None = None


@dataclass(frozen=True)
class GatheredSources:
    """What is put into the target prompt.

    Attributes:
        states: The states, on the model's device.
        layers: The layer that each of a source's states comes from.
        pairs: Source layer and target layer of each patch.
        origins: Where each source comes from.
    """

    states: Float[Tensor, "source layer hidden"]
    layers: list[int]
    pairs: list[LayerPair]
    origins: list[Origin]

    def some(self, group: Sequence[int]) -> GatheredSources:
        """Some of the sources, by number."""
        return replace(self, states=self.states[list(group)], origins=[self.origins[source] for source in group])


def gather_states(
    bench: Bench,
    params: PatchscopeParams,
    prompts: Sequence[EncodedPrompt],
    plan: Plan,
    targets: FollowedTargets,
    job: Job,
) -> GatheredSources:
    """The residual streams of the source prompts.

    Raises:
        InvalidRequest: A layer or position does not exist.
    """
    model = bench.model
    positions = [resolve_positions(params.source_positions, prompt) for prompt in prompts]
    pairs = pair_layers(params.source_layers, params.target_layers, model.num_layers, bench.handle)
    layers = sorted({layer for layer, _ in pairs} | {model.num_layers - 1})
    states = read_states(model, Workload(prompts, plan, bench.batch_tokens), positions, layers)
    words = _words(params.targets, model.tokenizer)
    at = [(prompt, position) for prompt in prompts for position in positions[prompt.index]]
    origins = [
        _origin(model, prompt, position, answer, words, targets.ids)
        for (prompt, position), answer in zip(at, _answers(model, states[:, -1]), strict=True)
    ]
    return GatheredSources(states, layers, pairs, origins)


def gather_vectors(
    bench: Bench, params: PatchscopeParams, names: Sequence[str], targets: FollowedTargets
) -> GatheredSources:
    """The kept vectors, times the factor. Each layer gets its own direction unless source layers are named.

    Raises:
        InvalidRequest: There is no such vector, or it has no direction for a layer.
    """
    model = bench.model
    kept = {name: bench.find_vector(name) for name in names}
    if params.source_layers != "all":
        pairs = pair_layers(params.source_layers, params.target_layers, model.num_layers, bench.handle)
    elif params.target_layers == "same":
        pairs = [(layer, layer) for layer in _layers_of_all(kept, model.num_layers)]
    else:
        pairs = [(layer, layer) for layer in resolve_layers(params.target_layers, model.num_layers, bench.handle)]
    layers = sorted({layer for layer, _ in pairs})
    places = [Place("layers_output", layer) for layer in layers]
    states = torch.stack(
        [torch.stack([resolve_vector(model, name, place, kept.__getitem__) for place in places]) for name in kept]
    )
    words, ids = _words(params.targets, model.tokenizer), list(targets.ids.values())
    origins = [Origin(words, ids, vector=name) for name in kept]
    return GatheredSources(params.factor * states.to(model.device), layers, pairs, origins)


def _layers_of_all(vectors: Mapping[str, Float[Tensor, "*layer hidden"]], num_layers: int) -> list[int]:
    """The layers for which every vector has a direction."""
    layers = [
        layer
        for layer in range(num_layers)
        if not any(vector.ndim == 2 and bool(vector[layer].isnan().any()) for vector in vectors.values())
    ]
    if not layers:
        raise InvalidRequest(
            f"no layer has a direction of each of the vectors {', '.join(vectors)}.", "Patch them one at a time."
        )
    return layers


def _words(asked: Mapping[str, Sequence[Target]], tokenizer: Any) -> list[list[str]]:
    """The strings of each category; of a token that is asked for by its id, its text."""
    return [
        [word if isinstance(word, str) else str(tokenizer.decode([word.id])) for word in words]
        for words in asked.values()
    ]


def _answers(model: StandardizedTransformer, last: Float[Tensor, "source hidden"]) -> list[int | None]:
    """The model's own next token after each source."""
    return list(likeliest_tokens(model, last)) if model.can("lens") else [None] * len(last)


def _origin(
    model: StandardizedTransformer,
    prompt: EncodedPrompt,
    position: int,
    answer: int | None,
    words: Sequence[Sequence[str]],
    targets: Mapping[str, list[int]],
) -> Origin:
    """Without targets, the source's own token and its answer are tracked: a repeat prompt repeats one of them."""
    token = prompt.ids[position]
    names = [None if one is None else token_text(model.tokenizer, one) for one in (token, answer)]
    if targets:
        return Origin(words, list(targets.values()), prompt.index, position, *names)
    tracked = [one for one in (token, answer) if one is not None]
    texts = [[str(model.tokenizer.decode([one]))] for one in tracked]
    return Origin(texts, [_spellings(one, model) for one in tracked], prompt.index, position, *names)


def _spellings(token: int, model: StandardizedTransformer) -> list[int]:
    """A token, with and without its leading space where it is a word; none for blank ones, which say nothing."""
    text = str(model.tokenizer.decode([token])).strip()
    found = get_first_tokens(text, model) if text else []
    return found if token in found or not text else [token]
