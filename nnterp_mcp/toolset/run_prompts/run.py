"""`run_prompts` in the worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnterp_mcp.engine.batching import make_batches
from nnterp_mcp.engine.forward import Plan
from nnterp_mcp.engine.readouts.next_token import Readout
from nnterp_mcp.engine.readouts.targets import find_shared_tokens, get_first_tokens, name_counted
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.logit_lens import read_lens
from nnterp_mcp.experiments.patchscope import pair_layers, read_patchscope
from nnterp_mcp.experiments.residual_states import read_states
from nnterp_mcp.experiments.target_prompts import Target, encode_target, repeat_prompt, resolve_target
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.access import allowed_file
from nnterp_mcp.request.fields import TokenId
from nnterp_mcp.request.selectors import SHARED_PAIRS, resolve_layers
from nnterp_mcp.toolset.run_prompts.files import read_prompt_file
from nnterp_mcp.toolset.run_prompts.params import PromptFile, PromptItem, RunPromptsParams
from nnterp_mcp.toolset.run_prompts.result import PromptRow, PromptRows, RunPromptsResult
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


@dataclass(frozen=True)
class _Experiment:
    """What is read of which prompts.

    Attributes:
        bench: The model, and the limits.
        readout: How it is read.
        layers: The layers to read.
        names: The categories.
        categories: For each prompt, the token ids of each category.
        plan: The operations in force.
        batch_tokens: Padded tokens in a batch.
    """

    bench: Bench
    readout: str
    layers: list[int]
    names: list[str]
    categories: list[list[list[int]]]
    plan: Plan
    batch_tokens: int

    def read(self, group: Sequence[EncodedPrompt], job: Job) -> PromptRows:
        """Reads some of the prompts, and puts words to their tokens."""
        begun = time.monotonic()
        prompts = sorted(group, key=lambda prompt: prompt.index)
        followed = [self.categories[prompt.index] for prompt in prompts]
        readout = (_read_patchscope if self.readout == "patchscope" else _read_lens)(self, prompts, followed, job)
        tokenizer = self.bench.model.tokenizer
        rows = {prompt.index: _row(tokenizer, prompt, readout, place) for place, prompt in enumerate(prompts)}
        return PromptRows(rows=rows, seconds=time.monotonic() - begun)


def run(bench: Bench, params: RunPromptsParams, job: Job) -> RunPromptsResult:
    """Reads every prompt, batch by batch."""
    model = bench.model
    items = _items(bench, params)
    names, targets = _targets(items, params, model, job)
    prompts = bench.encode([item.prompt for item in items])
    last = [model.num_layers - 1]
    experiment = _Experiment(
        bench,
        params.readout,
        last if params.readout == "next_token" else resolve_layers(params.layers, model.num_layers, bench.handle),
        names,
        targets,
        bench.plan(params.interventions, prompts, job),
        params.batch_tokens or bench.batch_tokens,
    )

    def assemble(parts: Sequence[PromptRows], taken: int) -> RunPromptsResult:
        rows = {number: row for part in parts for number, row in part.rows.items()}
        return RunPromptsResult(
            model=bench.handle,
            readout=params.readout,
            layers=experiment.layers,
            categories=names,
            shared=_shared(names, targets, model.tokenizer),
            interventions=list(experiment.plan.labels),
            rows=[rows[number] for number in sorted(rows)],
            asked=len(prompts),
            taken=taken,
            seconds=sum(part.seconds for part in parts),
        )

    batches = make_batches(model, prompts, experiment.batch_tokens)
    groups = [batch.prompts for batch in batches]
    return job.in_parts(groups, PromptRows, lambda group: experiment.read(group, job), assemble, "prompts")


def _items(bench: Bench, params: RunPromptsParams) -> Sequence[PromptItem]:
    if isinstance(params.prompts, PromptFile):
        path = allowed_file(params.prompts.path, bench.settings.folders)
        return read_prompt_file(path, bench.settings.max_prompts)
    return params.prompts


def _targets(
    items: Sequence[PromptItem], params: RunPromptsParams, model: StandardizedTransformer, job: Job
) -> tuple[list[str], list[list[list[int]]]]:
    """The categories, and each prompt's tokens for them; a prompt's own targets come before the shared ones.

    Raises:
        InvalidRequest: A prompt lacks a category that another has.
    """
    words = [params.targets | item.targets for item in items]
    names = list(words[0])
    for index, own in enumerate(words):
        if set(own) != set(names):
            raise InvalidRequest(
                f"prompt {index} has the target categories {sorted(own)}: all must have those of prompt 0, {names}."
            )
    known: dict[tuple[str | TokenId, ...], list[int]] = {}
    for strings in (strings for own in words for strings in own.values()):
        job.check()
        if strings not in known:
            known[strings] = get_first_tokens(strings, model)
    ids = [{name: known[own[name]] for name in names} for own in words]
    name_counted(ids, model.tokenizer)
    return names, [list(one.values()) for one in ids]


def _read_lens(
    experiment: _Experiment, prompts: Sequence[EncodedPrompt], followed: Sequence[list[list[int]]], job: Job
) -> Readout:
    return read_lens(
        experiment.bench.model,
        prompts,
        [[len(prompt.ids) - 1] for prompt in prompts],
        experiment.layers,
        categories=followed,
        top_k=1,
        plan=experiment.plan,
        batch_tokens=experiment.batch_tokens,
        on_batch=lambda done: job.check(),
    ).readout


def _read_patchscope(
    experiment: _Experiment, prompts: Sequence[EncodedPrompt], followed: Sequence[list[list[int]]], job: Job
) -> Readout:
    bench, layers = experiment.bench, experiment.layers
    states = read_states(
        bench.model,
        prompts,
        [[len(prompt.ids) - 1] for prompt in prompts],
        layers,
        plan=experiment.plan,
        batch_tokens=experiment.batch_tokens,
        on_batch=lambda done: job.check(),
    )
    return read_patchscope(
        bench.model,
        states,
        layers,
        _target(bench),
        pair_layers(layers, "same", bench.model.num_layers, bench.handle),
        top_k=1,
        categories=followed,
        batch_tokens=experiment.batch_tokens,
        on_batch=lambda done: job.check(),
    ).patched


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


def _row(tokenizer: object, prompt: EncodedPrompt, readout: Readout, index: int) -> PromptRow:
    top = zip(readout.top_ids[index, -1].tolist(), readout.top_probs[index, -1].tolist(), strict=True)
    return PromptRow(
        text=prompt.text,
        tokens=len(prompt.ids),
        top=[(token_text(tokenizer, token), p) for token, p in top],
        probabilities=readout.target_probs[index].tolist(),
        ranks=readout.target_ranks[index].tolist(),
    )
