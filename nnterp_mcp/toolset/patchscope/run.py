"""`patchscope` in the worker."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.fields import PositionSpec, Prompt
from nnterp_mcp.interventions.patched_rows import Target
from nnterp_mcp.interventions.patchscope import LayerPair, PatchscopeReadings, pair_layers, read_patchscope
from nnterp_mcp.interventions.prompts import follow_targets, get_first_tokens
from nnterp_mcp.interventions.readout import Readout
from nnterp_mcp.interventions.states import read_states
from nnterp_mcp.interventions.target_prompts import encode_target, it_repeat_prompt, repeat_prompt
from nnterp_mcp.model.positions import resolve_positions
from nnterp_mcp.model.prompts import EncodedPrompt, token_text
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.session.jobs import Job
from nnterp_mcp.toolset.patchscope.contract import PatchscopeParams
from nnterp_mcp.toolset.patchscope.result import Distribution, Patch, PatchscopeResult, Source

if TYPE_CHECKING:
    from nnterp_mcp.session.bench import Bench


@dataclass(frozen=True)
class _Place:
    """A position of a source prompt, and what is tracked for it.

    Attributes:
        prompt: The source prompt.
        position: The position in it.
        token: The token there, as text.
        answer: The model's own next token, as text.
        words: The strings of each tracked category.
        ids: Their tokens.
    """

    prompt: EncodedPrompt
    position: int
    token: str
    answer: str | None
    words: list[Sequence[str]]
    ids: list[list[int]]


def run(bench: Bench, params: PatchscopeParams, job: Job) -> PatchscopeResult:
    """Reads the sources, patches the target, and puts words to the tokens."""
    model, settings = bench.model, bench.settings
    prompts = bench.encode(params.source_prompts)
    positions = [resolve_positions(params.source_positions, prompt) for prompt in prompts]
    pairs = pair_layers(params.source_layers, params.target_layers, model.num_layers, bench.handle)
    encoded = _encode(
        model, params.target_prompt, bench.handle, bench.longest_prompt(params.max_new_tokens), len(prompts)
    )
    target = Target(tuple(encoded.ids), _target_position(params.target_position, encoded), encoded.index)
    edits = bench.plan(params.interventions, [*prompts, encoded], job)
    layers = sorted({layer for layer, _ in pairs} | {model.num_layers - 1})
    states = read_states(
        model,
        prompts,
        positions,
        layers,
        plan=edits,
        batch_tokens=settings.batch_tokens,
        on_batch=lambda done: job.check(),
    )
    targets = follow_targets(params.targets, model.tokenizer)
    answers = _answers(model, states[:, -1])
    at = [(prompt, position) for prompt in prompts for position in positions[prompt.index]]
    places = [
        _place(model.tokenizer, prompt, position, answer, params.targets, targets.ids)
        for (prompt, position), answer in zip(at, answers, strict=True)
    ]
    total = len(places) * len(pairs)
    readings = read_patchscope(
        model,
        states,
        layers,
        target,
        pairs,
        top_k=params.top_k,
        categories=[place.ids for place in places],
        max_new_tokens=params.max_new_tokens,
        plan=edits,
        batch_tokens=settings.batch_tokens,
        on_batch=lambda done: job.progress(done, total, f"{done} of {total} patches"),
    )
    before, token, after = _around(model.tokenizer, encoded, target.position)
    return PatchscopeResult(
        model=bench.handle,
        before=before,
        target_token=token,
        after=after,
        layout=_layout(pairs),
        categories=targets.words,
        shared=targets.shared,
        interventions=list(edits.labels),
        sources=_Writer(model.tokenizer, readings, params.max_new_tokens > 0).sources(places),
    )


def _encode(model: StandardizedTransformer, prompt: Prompt, name: str, limit: int, index: int) -> EncodedPrompt:
    """The target prompt; among the prompts of the request it is the last."""
    if prompt == "repeat":
        prompt = repeat_prompt().prompt
    elif prompt == "repeat_chat":
        prompt = it_repeat_prompt(model.tokenizer, add_user_instr=False, use_system_prompt=False).prompt
    return replace(encode_target(model.tokenizer, prompt, name, limit), index=index)


def _target_position(asked: PositionSpec, target: EncodedPrompt) -> int:
    """The patched token; the last one of a text."""
    try:
        return resolve_positions([asked], target)[-1]
    except InvalidRequest as error:
        message = error.message.replace(f"prompt {target.index}", "the target prompt")
        raise InvalidRequest(message, error.next_step) from None


def _answers(model: StandardizedTransformer, last: Float[Tensor, "source hidden"]) -> list[str | None]:
    """The model's own next token after each source."""
    if not model.can("lens"):
        return [None] * len(last)
    ids = [int(token) for part in last.split(64) for token in model.project_on_vocab(part).argmax(-1)]
    return [token_text(model.tokenizer, token) for token in ids]


def _place(
    tokenizer: Any,
    prompt: EncodedPrompt,
    position: int,
    answer: str | None,
    words: Mapping[str, Sequence[str]],
    targets: Mapping[str, list[int]],
) -> _Place:
    """Without targets, the source's own token and its answer are tracked: a repeat prompt repeats one of them."""
    token = token_text(tokenizer, prompt.ids[position])
    if targets:
        return _Place(prompt, position, token, answer, list(words.values()), list(targets.values()))
    tracked = [token] if answer is None else [token, answer]
    ids = [get_first_tokens(text.strip(), tokenizer) if text.strip() else [] for text in tracked]
    return _Place(prompt, position, token, answer, [[text] for text in tracked], ids)


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

    def sources(self, places: Sequence[_Place]) -> list[Source]:
        """Every source with its patches."""
        return [self._source(index, place) for index, place in enumerate(places)]

    def _source(self, source: int, place: _Place) -> Source:
        readings = self.readings
        said = self._distribution(readings.unpatched, (source,), readings.unpatched_continuation, place)
        patches = [
            Patch(
                source_layer=pair[0],
                target_layer=pair[1],
                **self._distribution(
                    readings.patched, (source, index), readings.continuations[source][index], place
                ).model_dump(),
            )
            for index, pair in enumerate(readings.pairs)
        ]
        return Source(
            prompt=place.prompt.index,
            position=place.position,
            token=place.token,
            answer=place.answer,
            unpatched=said,
            patches=patches,
        )

    def _distribution(self, readout: Readout, at: tuple[int, ...], tokens: list[int], place: _Place) -> Distribution:
        top = zip(readout.top_ids[at].tolist(), readout.top_probs[at].tolist(), strict=True)
        ranks = [int(rank) for rank in readout.target_ranks[at].tolist()]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True) if self.generated else None
        says = [
            rank == 1 if text is None or not _is_word(words) else _names(text, words)
            for rank, words in zip(ranks, place.words, strict=True)
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
