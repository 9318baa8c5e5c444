"""`patchscope` in the worker."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.forward import Plan
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.planning.vectors import resolve_vector
from nnterp_mcp.engine.readouts.next_token import Readout
from nnterp_mcp.engine.readouts.targets import FollowedTargets, follow_targets, get_first_tokens
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.activations import read_states
from nnterp_mcp.experiments.logit_lens import top_tokens
from nnterp_mcp.experiments.patched_target import LayerPair, SourceReadings, SourceTokens, Target
from nnterp_mcp.experiments.patchscope import PatchscopeReadings, pair_layers, read_patchscope
from nnterp_mcp.experiments.target_prompts import encode_target, it_repeat_prompt, repeat_prompt
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.positions import PositionSpec
from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.request.remarks import collect_remarks
from nnterp_mcp.request.selectors import resolve_layers
from nnterp_mcp.request.targets import Target as TargetWord
from nnterp_mcp.toolset.patchscope.by_lens import read_sources
from nnterp_mcp.toolset.patchscope.params import PatchscopeParams
from nnterp_mcp.toolset.patchscope.result import Distribution, PatchReading, PatchscopeResult, SourceReading
from nnterp_mcp.worker.job import Finished, Job
from nnterp_mcp.worker.lenses import find_lens

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_Lengths = list[list[tuple[float, float]]]
"""By source and pair: the length of what is put in, and of the state that it replaces."""


@dataclass(frozen=True)
class _Origin:
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
class _Sources:
    """The states that are put into the target prompt.

    Attributes:
        read: The states, on the model's device.
        pairs: Source layer and target layer of each patch.
        origins: Where each source comes from.
    """

    read: SourceReadings
    pairs: list[LayerPair]
    origins: list[_Origin]

    def some(self, group: Sequence[int]) -> _Sources:
        """Some of the sources, by number."""
        return replace(self, read=self.read.some(group), origins=[self.origins[source] for source in group])


def run(bench: Bench, params: PatchscopeParams, job: Job) -> PatchscopeResult:
    """Reads the sources, patches the target, and puts words to the tokens."""
    model = bench.model
    prompts = bench.encode(params.source_prompts or ())
    encoded = _encode(
        model, params.target_prompt, bench.handle, bench.longest_prompt(params.max_new_tokens), len(prompts)
    )
    position = _target_position(params.target_position, encoded)
    edits = bench.plan(params.interventions, [*prompts, encoded])
    target = Target(Workload([encoded], edits, bench.batch_tokens, job.progress), position)
    targets = follow_targets(params.targets, model)
    if params.source_vectors:
        sources = _gather_vectors(bench, params, params.source_vectors, targets)
        lengths = _lengths(model, sources, encoded, target.position, edits)
    else:
        sources = _gather_states(bench, params, prompts, target, targets)
        lengths = None
    before, token, after = _around(model.tokenizer, encoded, target.position)
    fitted = None if params.lens is None else find_lens(bench, params.lens, job.tell)

    def scope(group: Sequence[int]) -> list[SourceReading]:
        chosen = sources.some(group)
        readings = read_patchscope(
            model,
            chosen.read,
            target,
            chosen.pairs,
            top_k=params.top_k,
            categories=[origin.ids for origin in chosen.origins],
            max_new_tokens=params.max_new_tokens,
        )
        own = None if lengths is None else [lengths[source] for source in group]
        found = _Writer(model.tokenizer, readings, params.max_new_tokens > 0, own).sources(chosen.origins)
        if fitted is None:
            return found
        layers = sorted({layer for layer, _ in chosen.pairs})
        return read_sources(model, found, chosen.read, layers, fitted[0], [origin.ids for origin in chosen.origins])

    def assemble(done: Finished[SourceReading]) -> PatchscopeResult:
        return PatchscopeResult(
            model=bench.handle,
            before=before,
            target_token=token,
            after=after,
            layout=_layout(sources.pairs),
            categories=targets.words,
            shared=targets.shared,
            interventions=list(edits.labels),
            fitted=fitted and fitted[1],
            sources=done.items,
        )

    patch_tokens = len(sources.pairs) * (len(target.ids) + params.max_new_tokens)
    size = max(1, bench.batch_tokens // patch_tokens)
    numbers = range(len(sources.origins))
    groups = [numbers[first : first + size] for first in range(0, len(numbers), size)]
    return job.in_parts(groups, SourceReading, scope, assemble, "sources")


def _lengths(
    model: StandardizedTransformer, sources: _Sources, target: EncodedPrompt, position: int, plan: Plan
) -> _Lengths:
    """For each source and pair, how long the vector is and how long the state that it replaces."""
    into = sorted({layer for _, layer in sources.pairs})
    (replaced,) = read_states(model, Workload([target], plan), [[position]], into).float().norm(dim=-1).tolist()
    own = sources.read.states.float().norm(dim=-1).tolist()
    return [
        [(row[sources.read.layers.index(origin)], replaced[into.index(layer)]) for origin, layer in sources.pairs]
        for row in own
    ]


def _encode(model: StandardizedTransformer, prompt: Prompt, name: str, limit: int, index: int) -> EncodedPrompt:
    """The target prompt; among the prompts of the request it is the last."""
    if prompt == "repeat":
        prompt = repeat_prompt().prompt
    elif prompt == "repeat_chat":
        with collect_remarks():  # its text, which nobody wrote, begins as the template begins it
            chat = it_repeat_prompt(model.tokenizer, add_user_instr=False, use_system_prompt=False)
            return replace(encode_target(model.tokenizer, chat.prompt, name, limit, model.embedded), index=index)
    return replace(encode_target(model.tokenizer, prompt, name, limit, model.embedded), index=index)


def _target_position(asked: PositionSpec, target: EncodedPrompt) -> int:
    """The patched token; the last one of a text."""
    try:
        return resolve_positions([asked], target)[-1]
    except InvalidRequest as error:
        message = error.message.replace(f"prompt {target.index}", "the target prompt")
        raise InvalidRequest(message, error.next_step) from None


def _around(tokenizer: Any, prompt: EncodedPrompt, position: int) -> tuple[str, str, str]:
    """The prompt's text before a token, the token, and the text after it."""
    if prompt.spans:
        start, end = prompt.spans[position]
        return prompt.text[:start], prompt.text[start:end], prompt.text[end:]
    return (
        tokenizer.decode(prompt.ids[:position]),
        token_text(tokenizer, prompt.ids[position]),
        tokenizer.decode(prompt.ids[position + 1 :]),
    )


def _layout(pairs: Sequence[LayerPair]) -> Literal["same", "pairs", "grid"]:
    if all(source == target for source, target in pairs):
        return "same"
    return "pairs" if len({source for source, _ in pairs}) == len(pairs) else "grid"


@dataclass(frozen=True)
class _Writer:
    """Puts words to readings."""

    tokenizer: Any
    readings: PatchscopeReadings
    generated: bool
    lengths: _Lengths | None

    def sources(self, origins: Sequence[_Origin]) -> list[SourceReading]:
        """Every source with its patches."""
        return [self._source(index, origin) for index, origin in enumerate(origins)]

    def _source(self, source: int, origin: _Origin) -> SourceReading:
        readings = self.readings
        said = self._distribution(readings.unpatched, (source,), readings.unpatched_continuation, origin)
        patches = [
            PatchReading(
                source_layer=pair[0],
                target_layer=pair[1],
                lengths=self.lengths[source][index] if self.lengths else None,
                **self._distribution(
                    readings.patched, (source, index), readings.continuations[source][index], origin
                ).model_dump(),
            )
            for index, pair in enumerate(readings.pairs)
        ]
        return SourceReading(
            prompt=origin.prompt,
            position=origin.position,
            token=origin.token,
            answer=origin.answer,
            vector=origin.vector,
            unpatched=said,
            patches=patches,
        )

    def _distribution(self, readout: Readout, at: tuple[int, ...], tokens: list[int], origin: _Origin) -> Distribution:
        top = zip(readout.top_ids[at].tolist(), readout.top_probs[at].tolist(), strict=True)
        ranks = [int(rank) for rank in readout.target_ranks[at].tolist()]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True) if self.generated else None
        says = [
            rank == 1 if text is None or not _is_word(words) else _names(text, words)
            for rank, words in zip(ranks, origin.words, strict=True)
        ]
        return Distribution(
            top=[(token_text(self.tokenizer, token), p) for token, p in top],
            entropy=float(readout.entropy[at]),
            tracked=list(zip(readout.target_probs[at].tolist(), ranks, strict=True)),
            text=text,
            says=says,
        )


def _is_word(words: Sequence[str]) -> bool:
    return any(re.search(r"\w", word) for word in words)


def _names(text: str, words: Sequence[str]) -> bool:
    wanted = "|".join(re.escape(word.strip()) for word in words if re.search(r"\w", word))
    return re.search(rf"(?<!\w)(?:{wanted})(?!\w)", text, re.IGNORECASE) is not None


def _gather_states(
    bench: Bench,
    params: PatchscopeParams,
    prompts: Sequence[EncodedPrompt],
    target: Target,
    targets: FollowedTargets,
) -> _Sources:
    """The residual streams of the source prompts.

    Raises:
        InvalidRequest: A layer or position does not exist.
    """
    model = bench.model
    positions = [resolve_positions(params.source_positions, prompt) for prompt in prompts]
    pairs = pair_layers(params.source_layers, params.target_layers, model.num_layers, bench.handle)
    layers = sorted({layer for layer, _ in pairs} | {model.num_layers - 1})
    work = Workload(prompts, target.work.plan, bench.batch_tokens)
    read = SourceTokens(work, positions, layers).read_for(model, target, pairs, max_new_tokens=params.max_new_tokens)
    words = _words(params.targets, model.tokenizer)
    at = [(prompt, position) for prompt in prompts for position in positions[prompt.index]]
    origins = [
        _origin(model, prompt, position, answer, words, targets.ids)
        for (prompt, position), answer in zip(at, _answers(model, read.states[:, -1]), strict=True)
    ]
    return _Sources(read, pairs, origins)


def _gather_vectors(bench: Bench, params: PatchscopeParams, names: Sequence[str], targets: FollowedTargets) -> _Sources:
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
    origins = [_Origin(words, ids, vector=name) for name in kept]
    return _Sources(SourceReadings(params.factor * states.to(model.device), layers), pairs, origins)


def _layers_of_all(vectors: Mapping[str, Float[Tensor, "*layer hidden"]], num_layers: int) -> list[int]:
    """The layers for which every vector has a direction."""
    layers = [
        layer
        for layer in range(num_layers)
        if not any(vector.ndim > 1 and bool(vector[layer].isnan().any()) for vector in vectors.values())
    ]
    if not layers:
        raise InvalidRequest(
            f"no layer has a direction of each of the vectors {', '.join(vectors)}.", "Patch them one at a time."
        )
    return layers


def _words(asked: Mapping[str, Sequence[TargetWord]], tokenizer: Any) -> list[list[str]]:
    """The strings of each category; of a token that is asked for by its id, its text."""
    return [
        [word if isinstance(word, str) else str(tokenizer.decode([word.id])) for word in words]
        for words in asked.values()
    ]


def _answers(model: StandardizedTransformer, last: Float[Tensor, "source hidden"]) -> list[int | None]:
    """The model's own next token after each source."""
    return list(top_tokens(model, last)) if model.can("lens") else [None] * len(last)


def _origin(
    model: StandardizedTransformer,
    prompt: EncodedPrompt,
    position: int,
    answer: int | None,
    words: Sequence[Sequence[str]],
    targets: Mapping[str, list[int]],
) -> _Origin:
    """Without targets, the source's own token and its answer are tracked: a repeat prompt repeats one of them."""
    token = prompt.ids[position]
    names = [None if one is None else token_text(model.tokenizer, one) for one in (token, answer)]
    if targets:
        return _Origin(words, list(targets.values()), prompt.index, position, *names)
    tracked = [one for one in (token, answer) if one is not None]
    texts = [[str(model.tokenizer.decode([one]))] for one in tracked]
    return _Origin(texts, [_spellings(one, model) for one in tracked], prompt.index, position, *names)


def _spellings(token: int, model: StandardizedTransformer) -> list[int]:
    """A token, with and without its leading space where it is a word; none for blank ones, which say nothing."""
    text = str(model.tokenizer.decode([token])).strip()
    found = get_first_tokens(text, model) if text else []
    return found if token in found or not text else [token]
