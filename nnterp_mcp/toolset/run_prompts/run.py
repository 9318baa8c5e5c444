"""`run_prompts` in the worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.engine.readouts.next_token import Readout
from nnterp_mcp.engine.readouts.targets import find_shared_tokens, get_first_tokens, name_counted
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.logit_lens import leading_from, read_lenses
from nnterp_mcp.experiments.patched_target import SourceTokens, Target, resolve_target
from nnterp_mcp.experiments.patchscope import pair_layers, read_patchscope
from nnterp_mcp.experiments.target_prompts import encode_target, repeat_prompt
from nnterp_mcp.formatting import plural
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.prompt_sets import PromptItem
from nnterp_mcp.request.selectors import SHARED_PAIRS, resolve_layers
from nnterp_mcp.request.targets import TokenId
from nnterp_mcp.toolset.run_prompts.lenses import PLAIN, ComparedLens, compare_lenses, score
from nnterp_mcp.toolset.run_prompts.params import RunPromptsParams
from nnterp_mcp.toolset.run_prompts.result import PromptRow, RunPromptsResult
from nnterp_mcp.worker.job import Finished, Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


@dataclass(frozen=True)
class _Experiment:
    """A readout of some prompts.

    Attributes:
        bench: The model, and the limits.
        work: The prompts.
        readout: The kind of readout.
        layers: The layers to read.
        names: The categories.
        categories: For each prompt, the token ids of each category.
        lenses: The lenses of the readout `logit_lens`, the first of which the rows are from.
    """

    bench: Bench
    work: Workload
    readout: str
    layers: list[int]
    names: list[str]
    categories: list[list[list[int]]]
    lenses: Sequence[ComparedLens] = (PLAIN,)

    def read(self, group: Sequence[int]) -> list[PromptRow]:
        """Reads some of the prompts, and decodes their tokens."""
        work = self.work.some(group)
        followed = [self.categories[number] for number in group]
        ends = [[len(prompt.ids) - 1] for prompt in work.prompts]
        readouts = (_read_patchscope if self.readout == "patchscope" else _read_lenses)(self, work, ends, followed)
        tokenizer = self.bench.model.tokenizer
        return [_row(tokenizer, prompt, readouts, row, self.layers) for row, prompt in enumerate(work.prompts)]


def run(bench: Bench, params: RunPromptsParams, job: Job) -> RunPromptsResult:
    """Reads every prompt, batch by batch."""
    model = bench.model
    items = bench.read_prompts(params.prompts)
    names, targets = _targets(items, params, model)
    prompts = bench.encode([item.prompt for item in items])
    work = bench.workload(prompts, params.interventions, job)
    last = [model.num_layers - 1]
    experiment = _Experiment(
        bench,
        replace(work, batch_tokens=params.batch_tokens or work.batch_tokens),
        params.readout,
        last if params.readout == "next_token" else resolve_layers(params.layers, model.num_layers, bench.handle),
        names,
        targets,
        compare_lenses(bench, params.lens, job.tell),
    )

    def assemble(done: Finished[PromptRow]) -> RunPromptsResult:
        return RunPromptsResult(
            model=bench.handle,
            readout=params.readout,
            layers=experiment.layers,
            categories=names,
            shared=_shared(names, targets, model.tokenizer),
            interventions=list(work.plan.labels),
            rows=done.items,
            asked=len(prompts),
            taken=done.taken,
            seconds=done.seconds,
            fitted=[lens.card for lens in experiment.lenses if lens.card is not None],
            lenses=score(experiment.lenses, names, done.items, experiment.layers),
        )

    return job.in_parts(experiment.work.split(model), PromptRow, experiment.read, assemble)


def _targets(
    items: Sequence[PromptItem], params: RunPromptsParams, model: StandardizedTransformer
) -> tuple[list[str], list[list[list[int]]]]:
    """The categories, and each prompt's tokens for them; a prompt's own targets come before the shared ones.

    Raises:
        InvalidRequest: A prompt lacks a category that another has, or there are not as many targets as prompts.
    """
    shared = params.targets * len(items) if len(params.targets) == 1 else params.targets
    if len(shared) != len(items):
        raise InvalidRequest(
            f"targets has {len(shared)} mappings for {plural(len(items), 'prompt')}: give one for all, or one for each."
        )
    words = [given | item.targets for given, item in zip(shared, items, strict=True)]
    names = list(words[0])
    for index, own in enumerate(words):
        if set(own) != set(names):
            raise InvalidRequest(
                f"prompt {index} has the target categories {sorted(own)}: all must have those of prompt 0, {names}."
            )
    known: dict[tuple[str | TokenId, ...], list[int]] = {}
    for strings in (strings for own in words for strings in own.values()):
        check_cancelled()
        if strings not in known:
            known[strings] = get_first_tokens(strings, model)
    ids = [{name: known[own[name]] for name in names} for own in words]
    name_counted(ids, words, model.tokenizer)
    return names, [list(one.values()) for one in ids]


def _read_lenses(
    experiment: _Experiment, work: Workload, ends: Sequence[list[int]], followed: Sequence[list[list[int]]]
) -> list[Readout]:
    translations = [lens.translation for lens in experiment.lenses]
    model = experiment.bench.model
    found = read_lenses(model, work, ends, experiment.layers, translations, categories=followed, top_k=1)
    return [readings.readout for readings in found]


def _read_patchscope(
    experiment: _Experiment, work: Workload, ends: Sequence[list[int]], followed: Sequence[list[list[int]]]
) -> list[Readout]:
    bench, layers = experiment.bench, experiment.layers
    target = _target(bench)
    target = replace(target, work=replace(target.work, batch_tokens=work.batch_tokens))
    pairs = pair_layers(layers, "same", bench.model.num_layers, bench.handle)
    sources = SourceTokens(work, ends, layers).read_for(bench.model, target, pairs)
    return [read_patchscope(bench.model, sources, target, pairs, top_k=1, categories=followed).patched]


def _target(bench: Bench) -> Target:
    """The repeat prompt of the patchscope's paper."""
    prompt = repeat_prompt()
    limit, embedded = bench.longest_prompt(), bench.model.embedded
    encoded = encode_target(bench.model.tokenizer, prompt.prompt, bench.handle, limit, embedded)
    return resolve_target(encoded.ids, prompt.index_to_patch)


def _shared(names: list[str], targets: list[list[list[int]]], tokenizer: object) -> dict[str, list[str]]:
    """The first tokens that two categories share in any prompt."""
    shared: dict[str, dict[str, None]] = {}
    for ids in {str(ids): ids for ids in targets}.values():
        for (a, b), tokens in find_shared_tokens(
            dict(zip(names, ids, strict=True)), SHARED_PAIRS - len(shared)
        ).items():
            found = shared.setdefault(f"{a} and {b}", {})
            found.update(dict.fromkeys(token_text(tokenizer, token) for token in tokens))
    return {pair: list(tokens) for pair, tokens in shared.items()}


def _row(
    tokenizer: object, prompt: EncodedPrompt, readouts: Sequence[Readout], index: int, layers: Sequence[int]
) -> PromptRow:
    readout = readouts[0]
    top = zip(readout.top_ids[index, -1].tolist(), readout.top_probs[index, -1].tolist(), strict=True)
    tops = readout.top_ids[index, :, 0].tolist()
    return PromptRow(
        text=prompt.text,
        tokens=len(prompt.ids),
        top=[(token_text(tokenizer, token), p) for token, p in top],
        probabilities=readout.target_probs[index].tolist(),
        ranks=readout.target_ranks[index].tolist(),
        leads_from=layers[leading_from(tops)] if len(tops) > 1 else None,
        lens_ranks=[each.target_ranks[index].tolist() for each in readouts] if len(readouts) > 1 else None,
    )
