"""`patchscope` in the worker."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from nnterp_mcp.engine.forward import Plan
from nnterp_mcp.engine.readouts.next_token import Readout
from nnterp_mcp.engine.readouts.targets import follow_targets
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.activations import read_states
from nnterp_mcp.experiments.patchscope import LayerPair, PatchscopeReadings, read_patchscope
from nnterp_mcp.experiments.target_prompts import Target, encode_target, it_repeat_prompt, repeat_prompt
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.positions import PositionSpec
from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.request.remarks import collect_remarks
from nnterp_mcp.toolset.patchscope.params import PatchscopeParams
from nnterp_mcp.toolset.patchscope.result import Distribution, PatchReading, PatchscopeResult, SourceReading
from nnterp_mcp.toolset.patchscope.sources import GatheredSources, Origin, gather_states, gather_vectors
from nnterp_mcp.worker.job import Finished, Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_Lengths = list[list[tuple[float, float]]]
"""By source and pair: the length of what is put in, and of the state that it replaces."""


def run(bench: Bench, params: PatchscopeParams, job: Job) -> PatchscopeResult:
    """Reads the sources, patches the target, and puts words to the tokens."""
    model = bench.model
    prompts = bench.encode(params.source_prompts or ())
    encoded = _encode(
        model, params.target_prompt, bench.handle, bench.longest_prompt(params.max_new_tokens), len(prompts)
    )
    target = Target(tuple(encoded.ids), _target_position(params.target_position, encoded), encoded.index)
    edits = bench.plan(params.interventions, [*prompts, encoded])
    targets = follow_targets(params.targets, model)
    if params.source_vectors:
        sources = gather_vectors(bench, params, params.source_vectors, targets)
        lengths = _lengths(model, sources, encoded, target.position, edits)
    else:
        sources = gather_states(bench, params, prompts, edits, targets, job)
        lengths = None
    before, token, after = _around(model.tokenizer, encoded, target.position)

    def scope(group: Sequence[int]) -> list[SourceReading]:
        chosen = sources.some(group)
        total = len(group) * len(chosen.pairs)
        readings = read_patchscope(
            model,
            chosen.states,
            chosen.layers,
            target,
            chosen.pairs,
            top_k=params.top_k,
            categories=[origin.ids for origin in chosen.origins],
            max_new_tokens=params.max_new_tokens,
            plan=edits,
            batch_tokens=bench.batch_tokens,
            on_batch=lambda done: job.progress(done, total, "patches"),
        )
        own = None if lengths is None else [lengths[source] for source in group]
        return _Writer(model.tokenizer, readings, params.max_new_tokens > 0, own).sources(chosen.origins)

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
            sources=done.items,
        )

    patch_tokens = len(sources.pairs) * (len(target.ids) + params.max_new_tokens)
    size = max(1, bench.batch_tokens // patch_tokens)
    numbers = range(len(sources.origins))
    groups = [numbers[first : first + size] for first in range(0, len(numbers), size)]
    return job.in_parts(groups, SourceReading, scope, assemble, "sources")


def _lengths(
    model: StandardizedTransformer, sources: GatheredSources, target: EncodedPrompt, position: int, plan: Plan
) -> _Lengths:
    """For each source and pair, how long the vector is and how long the state that it replaces."""
    into = sorted({layer for _, layer in sources.pairs})
    (replaced,) = read_states(model, Workload([target], plan), [[position]], into).float().norm(dim=-1).tolist()
    own = sources.states.float().norm(dim=-1).tolist()
    return [
        [(row[sources.layers.index(origin)], replaced[into.index(layer)]) for origin, layer in sources.pairs]
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

    def sources(self, origins: Sequence[Origin]) -> list[SourceReading]:
        """Every source with its patches."""
        return [self._source(index, origin) for index, origin in enumerate(origins)]

    def _source(self, source: int, origin: Origin) -> SourceReading:
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

    def _distribution(self, readout: Readout, at: tuple[int, ...], tokens: list[int], origin: Origin) -> Distribution:
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
    """Whether there is anything to look for in a text: a comma stands in any."""
    return any(re.search(r"\w", word) for word in words)


def _names(text: str, words: Sequence[str]) -> bool:
    """Whether a text holds one of some strings as a word, whatever its case."""
    wanted = "|".join(re.escape(word.strip()) for word in words if re.search(r"\w", word))
    return re.search(rf"(?<!\w)(?:{wanted})(?!\w)", text, re.IGNORECASE) is not None
