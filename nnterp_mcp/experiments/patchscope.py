"""Patchscopes: a hidden state of one prompt put into another, and what the model then says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import nnsight
import torch
from jaxtyping import Float, Int
from nnsight import TransformersModel
from torch import Tensor

from nnterp_mcp.engine.backend import runs_elsewhere
from nnterp_mcp.engine.batching import run_halving
from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.kv_cache import SharedCache
from nnterp_mcp.engine.patched_rows import (
    LOGITS_AT_ONCE,
    PatchedBatch,
    Target,
    name_row,
    resolve_target,
    run_patched,
)
from nnterp_mcp.engine.readouts.next_token import Categories, Readout, read_distribution
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.target_prompts import (
    TargetPrompt,
    TargetPromptBatch,
    encode_target,
    it_repeat_prompt,
    repeat_prompt,
)
from nnterp_mcp.model.loading.adoption import standardize
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.nnterp.activations import get_token_activations, refuse_remote
from nnterp_mcp.nnterp.packing import read_packed
from nnterp_mcp.request.layers import resolve_layers

__all__ = [
    "PatchscopeReadings",
    "TargetPrompt",
    "TargetPromptBatch",
    "it_repeat_prompt",
    "pair_layers",
    "patch_object_attn_lens",
    "patchscope_generate",
    "patchscope_lens",
    "read_patchscope",
    "repeat_prompt",
]

_ROWS_AT_ONCE = 16
"""Distributions that are normalized at one time: few enough to stay in a processor's cache."""

LayerPair = tuple[int, int]
"""The layer after which a state is read, and the layer after which it is put into the target prompt."""


@dataclass(frozen=True)
class PatchscopeReadings:
    """What the target prompt says under each patch, on the CPU.

    Attributes:
        pairs: Source layer and target layer of each patch.
        patched: The distributions after the target prompt, by source and pair.
        continuations: Generated tokens, by source and pair; each row in the order of generation.
        unpatched: The distribution without a patch, with each source's categories.
        unpatched_continuation: What is generated without a patch.
    """

    pairs: list[LayerPair]
    patched: Readout
    continuations: list[list[list[int]]]
    unpatched: Readout
    unpatched_continuation: list[int]


@runs_elsewhere
def read_patchscope(
    model: StandardizedTransformer,
    states: Float[Tensor, "source layer hidden"],
    source_layers: Sequence[int],
    target: Target,
    pairs: Sequence[LayerPair],
    *,
    top_k: int = 3,
    categories: Sequence[Sequence[Sequence[int]]] | None = None,
    max_new_tokens: int = 0,
    plan: Plan = NOTHING,
    batch_tokens: int = 4096,
    on_batch: Callable[[int], None] = lambda patches_done: None,
) -> PatchscopeReadings:
    """Puts each source's state of each pair's layer into the target prompt, and reads what the model says after it.

    Measures what the model can make of a state in the target's context. It misleads where the state is put into a
    layer far from its own (another basis), where the target prompt itself prefers an answer (compare with
    `unpatched`), and where a model fails at the target prompt's task: silence is no proof that the information is
    absent.

    Everything is reduced beside the model: only the numbers in the readings leave the device.

    Args:
        model: The model.
        states: Residual streams after `source_layers`, or any vectors of that width.
        source_layers: The layer of each of a source's states.
        target: The target prompt and the position at which states are put.
        pairs: Source layer and target layer of each patch, the same for all sources.
        top_k: How many of the likeliest tokens to keep.
        categories: For each source, the token ids of each category to follow.
        max_new_tokens: How many tokens to generate greedily; none by default. The patch acts on the prompt only.
        plan: The operations in force while the target prompt runs, planned for a request that it belongs to.
        batch_tokens: Tokens in a batch, at most.
        on_batch: Called after each batch with the number of patches done; what it raises ends the reading.

    Returns:
        The readings in the order of the sources, then of the pairs.

    Source: Ghandeharioun et al., "Patchscopes: A Unifying Framework for Inspecting Hidden Representations of Language
    Models" (2024).
    """
    if states.shape[-1] != model.hidden_size:
        raise InvalidRequest(f"states of width {states.shape[-1]} do not fit: {model.name} has {model.hidden_size}.")
    sources = [source for source in range(len(states)) for _ in pairs]
    columns = [source_layers.index(layer) for _ in range(len(states)) for layer, _ in pairs]
    followed = Categories.of(categories or [[]] * len(states), model.device)
    of_row = torch.tensor(sources, device=model.device)
    batches = run_patched(
        model,
        target,
        states[sources, columns],
        [layer for _ in range(len(states)) for _, layer in pairs],
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        plan=plan,
    )
    parts: list[Readout] = []
    order: list[int] = []
    said: dict[int, list[int]] = {}
    last: PatchedBatch | None = None
    for last in batches:
        parts.append(read_distribution(last.logits, top_k, followed[of_row[last.rows]]))
        order += last.rows
        said |= zip(last.rows, last.continuations, strict=True)
        on_batch(len(order))
    assert last is not None
    return PatchscopeReadings(
        pairs=list(pairs),
        patched=Readout.gather(parts, order, (len(states), len(pairs))),
        continuations=[
            [said[row] for row in range(start, start + len(pairs))] for start in range(0, len(said), len(pairs))
        ],
        unpatched=_read_unpatched(last, top_k, followed),
        unpatched_continuation=last.unpatched_continuation,
    )


def _read_unpatched(batch: PatchedBatch, top_k: int, followed: Categories) -> Readout:
    """The unpatched distribution once for each source, whose categories differ."""
    sources = torch.arange(len(followed.ids), device=batch.logits.device)
    chunks = sources.split(len(batch.logits))
    parts = [read_distribution(batch.unpatched_logits.expand(len(at), -1), top_k, followed[at]) for at in chunks]
    return Readout.gather(parts, sources.tolist(), (len(sources),))


def pair_layers(
    source_layers: str | int | Sequence[int], target_layers: str | int | Sequence[int], num_layers: int, name: str
) -> list[LayerPair]:
    """Which source layer goes into which target layer.

    Args:
        source_layers: A layer, a list, a range or `all`.
        target_layers: `same` puts each state back where it was; a layer takes all of them; a list takes one after
            the other, in the order given; a range or `all` takes every one of them in each of its layers, a grid.
        num_layers: How many layers the model has.
        name: The model's name, for errors.

    Raises:
        InvalidRequest: A layer does not exist, or the lists differ in length.
    """
    sources = _listed(source_layers, num_layers, name)
    if target_layers == "same":
        return [(layer, layer) for layer in sources]
    targets = _listed(target_layers, num_layers, name)
    if isinstance(target_layers, str) or len(targets) == 1:
        return list(product(sources, targets))
    if len(targets) != len(sources):
        raise InvalidRequest(
            f"{len(targets)} target_layers cannot take the states of {len(sources)} source_layers one by one.",
            "Give lists of equal length, one target layer, 'same', or 'all' or a range for a grid.",
        )
    return list(zip(sources, targets, strict=True))


def _listed(layers: str | int | Sequence[int], num_layers: int, name: str) -> list[int]:
    """Layers in the order given."""
    if isinstance(layers, str | int):
        return resolve_layers(layers, num_layers, name)
    return [index for layer in layers for index in resolve_layers(layer, num_layers, name)]


def patchscope_lens(
    nn_model: TransformersModel,
    source_prompts: str | Sequence[str] | None = None,
    target_patch_prompts: TargetPromptBatch | Sequence[TargetPrompt] | TargetPrompt | None = None,
    layers: int | Sequence[int] | None = None,
    latents: Float[Tensor, "layer source hidden"] | Sequence[Float[Tensor, "source hidden"]] | None = None,
    remote: bool = False,
) -> Float[Tensor, "source layer vocabulary"]:
    """The distribution after a target prompt, a state of the source put in after the layer that it was read from.

    Measures and misleads as `read_patchscope` says.

    Args:
        nn_model: The model.
        source_prompts: Texts, of which the last token's states are taken.
        target_patch_prompts: One target prompt, or one for each source; the repeat prompt by default.
        layers: The layers to read and to patch; all by default.
        latents: States to put in instead of source prompts: of every layer of the model, or of the layers chosen, in
            their order.
        remote: Only False.

    Returns:
        Probabilities, on the CPU.

    Raises:
        InvalidRequest: Sources and target prompts do not match, or a layer or position does not exist.
        Unsupported: `remote` is set.
    """
    refuse_remote(remote)
    model = standardize(nn_model)
    chosen = _listed("all" if layers is None else layers, model.num_layers, model.name)
    given = _given_states(model, source_prompts, chosen, latents)
    texts = [source_prompts] if isinstance(source_prompts, str) else list(source_prompts or ())
    count = len(texts) if given is None else given.shape[1]
    prompts = TargetPromptBatch.auto(target_patch_prompts or repeat_prompt(), count)
    if len(prompts) != count:
        raise InvalidRequest(f"{len(prompts)} target prompts do not match {count} sources.")
    targets = _by_target(model, prompts)
    states, prefix = (given, None) if given is not None else _read_sources(model, texts, chosen, list(targets))
    probs = torch.empty(count, len(chosen), model.vocab_size)
    for target, sources in targets.items():
        at = torch.cartesian_prod(torch.tensor(sources), torch.arange(len(chosen)))
        of_row = [chosen[place] for _, place in at.tolist()]
        for batch in run_patched(model, target, states[at[:, 1], at[:, 0]], of_row, prefix=prefix):
            parts = zip(batch.logits.split(_ROWS_AT_ONCE), at[batch.rows].split(_ROWS_AT_ONCE), strict=True)
            for logits, rows in parts:
                probs[rows[:, 0], rows[:, 1]] = logits.softmax(-1).cpu()
    return probs


def _read_sources(
    model: StandardizedTransformer, texts: Sequence[str], layers: Sequence[int], targets: Sequence[Target]
) -> tuple[Float[Tensor, "layer source hidden"], SharedCache | None]:
    """The states after each source; together with the beginning of the target prompt, where there is one for all."""
    read = sorted(set(layers))
    places = [read.index(layer) for layer in layers]
    if len(targets) == 1:
        encoded = encode_prompts(model.tokenizer, texts, model.name, model.context, model.embedded)
        packed = read_packed(model, [prompt.ids for prompt in encoded], read, targets[0])
        if packed is not None:
            return packed[0][places], packed[1]
    return get_token_activations(model, texts, read)[places], None


def _given_states(
    model: StandardizedTransformer,
    prompts: str | Sequence[str] | None,
    layers: Sequence[int],
    latents: Float[Tensor, "layer source hidden"] | Sequence[Float[Tensor, "source hidden"]] | None,
) -> Float[Tensor, "layer source hidden"] | None:
    """The states that came instead of source prompts, if they did."""
    if (prompts is None) == (latents is None):
        raise InvalidRequest("give either source_prompts or latents.")
    if latents is None:
        return None
    if len({rows.shape for rows in latents}) > 1:
        raise InvalidRequest("latents differ in shape from layer to layer: each layer needs one state for each source.")
    given = latents if isinstance(latents, Tensor) else torch.stack(list(latents))
    fits = given.ndim == 3 and given.shape[-1] == model.hidden_size
    if fits and len(given) == len(layers):
        return given
    if fits and len(given) == model.num_layers:
        return given[list(layers)]
    counts = " or ".join(map(str, sorted({len(layers), model.num_layers})))
    raise InvalidRequest(
        f"latents have shape {tuple(given.shape)}: ({counts} layers, sources, {model.hidden_size}) is needed."
    )


def _by_target(model: StandardizedTransformer, prompts: TargetPromptBatch) -> dict[Target, list[int]]:
    """The sources of each different target prompt."""
    found: dict[Target, list[int]] = {}
    for source, prompt in enumerate(prompts):
        ids = encode_target(model.tokenizer, prompt.prompt, model.name, model.context, model.embedded).ids
        found.setdefault(resolve_target(ids, prompt.index_to_patch), []).append(source)
    return found


def patchscope_generate(
    nn_model: TransformersModel,
    prompts: str | Sequence[str],
    target_patch_prompt: TargetPrompt,
    max_length: int = 50,
    layers: int | Sequence[int] | None = None,
    remote: bool = False,
    max_batch_size: int = 32,
) -> dict[int, Int[Tensor, "source token"]]:
    """What the model writes after a target prompt, a state of the source put in after the layer it was read from.

    Greedy; the patch acts on the prompt, and new tokens see it through their attention.

    Args:
        nn_model: The model.
        prompts: Texts, of which the last token's states are taken.
        target_patch_prompt: The target prompt.
        max_length: How many tokens to generate.
        layers: The layers to read and to patch; all by default.
        remote: Only False.
        max_batch_size: Continuations in a batch, at most.

    Returns:
        For each layer, the target prompt's tokens and the new ones, padded at the end; on the CPU.

    Raises:
        InvalidRequest: A layer or position does not exist.
        Unsupported: `remote` is set.
    """
    refuse_remote(remote)
    model = standardize(nn_model)
    chosen = _listed("all" if layers is None else layers, model.num_layers, model.name)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    prompt = target_patch_prompt.prompt
    ids = encode_target(model.tokenizer, prompt, model.name, model.context, model.embedded).ids
    target = resolve_target(ids, target_patch_prompt.index_to_patch)
    states, prefix = _read_sources(model, texts, chosen, [target])
    said: dict[int, list[int]] = {}
    for batch in run_patched(
        model,
        target,
        states.flatten(0, 1),
        [layer for layer in chosen for _ in range(states.shape[1])],
        max_new_tokens=max_length,
        batch_tokens=(max_batch_size + 1) * (len(ids) + max_length),
        prefix=prefix,
    ):
        said |= zip(batch.rows, batch.continuations, strict=True)
    width = max(map(len, said.values()))
    rows = [ids + said[row] + [model.pad_id] * (width - len(said[row])) for row in range(len(said))]
    return dict(zip(chosen, torch.tensor(rows).split(states.shape[1]), strict=True))


@torch.no_grad()
def patch_object_attn_lens(
    nn_model: TransformersModel,
    source_prompts: str | Sequence[str],
    target_prompts: str | Sequence[str],
    attn_idx_patch: int,
    num_patches: int = 5,
) -> Float[Tensor, "target layer vocabulary"]:
    """The distribution after target prompts in which, for a few layers, attention reads the source instead of a token.

    What enters attention at the chosen token is replaced by what entered it at the last token of the source prompt,
    in `num_patches` layers from each layer on. Measures which layers read an object's attributes off its token. It
    misleads where the replaced token is also what is asked from: its queries are replaced too.

    Args:
        nn_model: The model.
        source_prompts: One text, or one for each target prompt.
        target_prompts: Texts.
        attn_idx_patch: The token to replace in each target prompt, from either end.
        num_patches: In how many layers.

    Returns:
        Probabilities by the first patched layer, on the CPU.

    Raises:
        InvalidRequest: Sources and target prompts do not match, or the token does not exist.
        Unsupported: A layer has no attention.
    """
    model = standardize(nn_model)
    targets = [target_prompts] if isinstance(target_prompts, str) else list(target_prompts)
    sources = [source_prompts] if isinstance(source_prompts, str) else list(source_prompts)
    if len(sources) not in (1, len(targets)):
        raise InvalidRequest(f"{len(sources)} source prompts do not match {len(targets)} target prompts.")
    entering = get_token_activations(model, sources, get_activations=lambda model, layer: model.attentions_input[layer])
    probs = torch.empty(len(targets), model.num_layers, model.vocab_size)
    for prompt in encode_prompts(model.tokenizer, targets, model.name, model.context, model.embedded):
        target = resolve_target(prompt.ids, attn_idx_patch)
        states = entering[:, prompt.index if len(sources) > 1 else 0]
        rows = max(1, min(4096 // len(target.ids), LOGITS_AT_ONCE // model.vocab_size))
        batches = [first.tolist() for first in torch.arange(model.num_layers).split(rows)]
        patch = partial(_patch_attention, model, target, states, num_patches=num_patches)
        probs[prompt.index] = torch.cat([*run_halving(model, batches, patch, name_row(target))])
    return probs


def _patch_attention(
    model: StandardizedTransformer,
    target: Target,
    states: Float[Tensor, "layer hidden"],
    starts: Sequence[int],
    num_patches: int,
) -> Float[Tensor, "start vocabulary"]:
    """One row for each layer from which on attention reads the source."""
    ids = torch.tensor([target.ids], device=model.device).repeat(len(starts), 1)
    reading = {
        layer: rows
        for layer in range(model.num_layers)
        if (rows := [row for row, start in enumerate(starts) if start <= layer < start + num_patches])
    }
    with model.trace(input_ids=ids):
        for layer, rows in reading.items():
            hidden = model.attentions_input[layer].clone()
            hidden[rows, target.position] = states[layer].to(hidden)
            model.attentions_input[layer] = hidden
        probs = nnsight.save(model.logits[:, -1].float().softmax(-1).cpu())
    return probs  # noqa: RET504 - the trace ends before
