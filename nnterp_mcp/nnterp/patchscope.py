"""nnterp's patchscopes, which give whole distributions, and the target prompts that they take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import nnsight
import torch
from jaxtyping import Float, Int
from nnsight import TransformersModel
from torch import Tensor

from nnterp_mcp.display.progress import progress_bar
from nnterp_mcp.engine.batching import LOGITS_AT_ONCE, run_halving
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.patched_target import SourceReadings, SourceTokens, Target, resolve_target, run_patches
from nnterp_mcp.experiments.patchscope import layers_in_order
from nnterp_mcp.experiments.target_prompts import TargetPrompt, encode_target, repeat_prompt
from nnterp_mcp.model.loading.adoption import standardize
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.nnterp.activations import get_token_activations, refuse_remote

_ROWS_AT_ONCE = 16
"""Distributions that are normalized at one time: few enough to stay in a processor's cache."""


@dataclass
class TargetPromptBatch:
    """One target prompt for each source.

    Attributes:
        prompts: The texts.
        index_to_patch: The token to replace in each, counted from either end of the unpadded prompt.
    """

    prompts: list[str]
    index_to_patch: Int[Tensor, " prompt"]

    @classmethod
    def from_target_prompts(cls, prompts_: Sequence[TargetPrompt]) -> TargetPromptBatch:
        """A batch of different prompts."""
        return cls([one.prompt for one in prompts_], torch.tensor([one.index_to_patch for one in prompts_]))

    @classmethod
    def from_target_prompt(cls, prompt: TargetPrompt, batch_size: int) -> TargetPromptBatch:
        """A batch of one prompt over and over."""
        return cls.from_target_prompts([prompt] * batch_size)

    @classmethod
    def from_prompts(
        cls, prompts: str | Sequence[str], index_to_patch: int | Sequence[int] | Int[Tensor, " prompt"]
    ) -> TargetPromptBatch:
        """A batch from texts and a token for all of them, or one for each.

        Raises:
            InvalidRequest: The tokens are given by something else than integers.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        try:
            indices = torch.as_tensor(
                [index_to_patch] * len(texts) if isinstance(index_to_patch, int) else index_to_patch
            )
        except (TypeError, ValueError, RuntimeError):
            raise InvalidRequest(
                f"index_to_patch must be an integer, a list of them or a tensor, not {index_to_patch!r}."
            ) from None
        return cls(texts, indices)

    @staticmethod
    def auto(
        target_prompt: TargetPrompt | Sequence[TargetPrompt] | TargetPromptBatch, batch_size: int
    ) -> TargetPromptBatch:
        """Whatever names target prompts, as a batch.

        Raises:
            InvalidRequest: It is something else.
        """
        if isinstance(target_prompt, TargetPromptBatch):
            return target_prompt
        if isinstance(target_prompt, TargetPrompt):
            return TargetPromptBatch.from_target_prompt(target_prompt, batch_size)
        if isinstance(target_prompt, list | tuple):
            return TargetPromptBatch.from_target_prompts(target_prompt)
        raise InvalidRequest(
            f"target prompts must be a TargetPrompt, a list of them or a TargetPromptBatch, not {target_prompt!r}"
        )

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def __getitem__(self, idx: int) -> TargetPrompt:
        """One prompt with its token."""
        return TargetPrompt(self.prompts[idx], int(self.index_to_patch[idx]))

    def __iter__(self) -> Iterator[TargetPrompt]:
        """The prompts in order."""
        return (self[index] for index in range(len(self)))


def patchscope_lens(
    nn_model: TransformersModel,
    source_prompts: str | Sequence[str] | None = None,
    target_patch_prompts: TargetPromptBatch | Sequence[TargetPrompt] | TargetPrompt | None = None,
    layers: int | Sequence[int] | None = None,
    latents: Float[Tensor, "given source hidden"] | Sequence[Float[Tensor, "source hidden"]] | None = None,
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
    chosen = layers_in_order("all" if layers is None else layers, model.num_layers, model.name)
    given = _given_states(model, source_prompts, chosen, latents)
    texts = [source_prompts] if isinstance(source_prompts, str) else list(source_prompts or ())
    count = len(texts) if given is None else given.shape[1]
    prompts = TargetPromptBatch.auto(target_patch_prompts or repeat_prompt(), count)
    if len(prompts) != count:
        raise InvalidRequest(f"{len(prompts)} target prompts do not match {count} sources.")
    targets = _by_target(model, prompts)
    pairs = [(layer, layer) for layer in chosen]
    if given is None:
        tokens = _last_tokens(model, texts, chosen)
        states = tokens.read_for(model, targets[0][0], pairs) if len(targets) == 1 else tokens.read(model)
    else:
        states, pairs = SourceReadings(given.transpose(0, 1), range(len(chosen))), list(enumerate(chosen))
    probs = torch.empty(count, len(chosen), model.vocab_size)
    done = 0
    with progress_bar() as bar:
        for target, sources in targets:
            at = torch.cartesian_prod(torch.tensor(sources), torch.arange(len(chosen)))
            for batch in run_patches(model, target, states.some(sources), pairs):
                parts = zip(batch.logits.split(_ROWS_AT_ONCE), at[batch.rows].split(_ROWS_AT_ONCE), strict=True)
                for logits, rows in parts:
                    probs[rows[:, 0], rows[:, 1]] = logits.softmax(-1).cpu()
                done += len(batch.rows)
                bar.count(done, count * len(chosen), "patches")
    return probs


def _last_tokens(model: StandardizedTransformer, texts: Sequence[str], layers: Sequence[int]) -> SourceTokens:
    """The last token of each text."""
    encoded = encode_prompts(model.tokenizer, texts, model.name, model.context, model.embedded)
    return SourceTokens(Workload(encoded), [[len(prompt.ids) - 1] for prompt in encoded], sorted(set(layers)))


def _given_states(
    model: StandardizedTransformer,
    prompts: str | Sequence[str] | None,
    layers: Sequence[int],
    latents: Float[Tensor, "given source hidden"] | Sequence[Float[Tensor, "source hidden"]] | None,
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


def _by_target(model: StandardizedTransformer, prompts: TargetPromptBatch) -> list[tuple[Target, list[int]]]:
    """The different target prompts, each with its sources."""
    found: dict[tuple[tuple[int, ...], int], tuple[Target, list[int]]] = {}
    for source, prompt in enumerate(prompts):
        ids = encode_target(model.tokenizer, prompt.prompt, model.name, model.context, model.embedded).ids
        target = resolve_target(ids, prompt.index_to_patch)
        found.setdefault((tuple(ids), target.position), (target, []))[1].append(source)
    return list(found.values())


def patchscope_generate(
    nn_model: TransformersModel,
    prompts: str | Sequence[str],
    target_patch_prompt: TargetPrompt,
    max_length: int = 50,
    layers: int | Sequence[int] | None = None,
    remote: bool = False,
    max_batch_size: int = 32,
) -> dict[int, Int[Tensor, "source token"]]:
    """The text generated after a target prompt into which a state of the source is patched at the layer of its own.

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
    chosen = layers_in_order("all" if layers is None else layers, model.num_layers, model.name)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    prompt = target_patch_prompt.prompt
    ids = encode_target(model.tokenizer, prompt, model.name, model.context, model.embedded).ids
    target = resolve_target(ids, target_patch_prompt.index_to_patch)
    batched = replace(target.work, batch_tokens=(max_batch_size + 1) * (len(ids) + max_length))
    sources, pairs = _last_tokens(model, texts, chosen).read(model), [(layer, layer) for layer in chosen]
    said: dict[int, list[int]] = {}
    with progress_bar() as bar:
        for batch in run_patches(model, replace(target, work=batched), sources, pairs, max_new_tokens=max_length):
            said |= zip(batch.rows, batch.continuations, strict=True)
            bar.count(len(said), len(texts) * len(chosen), "continuations")
    width = max(map(len, said.values()))
    rows = [ids + said[row] + [model.pad_id] * (width - len(said[row])) for row in range(len(said))]
    by_layer = torch.tensor(rows).unflatten(0, (len(texts), len(chosen))).transpose(0, 1)
    return dict(zip(chosen, by_layer.contiguous(), strict=True))


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
    with progress_bar() as bar:
        for prompt in encode_prompts(model.tokenizer, targets, model.name, model.context, model.embedded):
            target = resolve_target(prompt.ids, attn_idx_patch)
            states = entering[:, prompt.index if len(sources) > 1 else 0]
            rows = max(1, min(4096 // len(target.ids), LOGITS_AT_ONCE // model.vocab_size))
            batches = [first.tolist() for first in torch.arange(model.num_layers).split(rows)]
            name = f"a prompt of {len(target.ids)} tokens with one patched row"
            patch = partial(_patch_attention, model, target, states, num_patches=num_patches)
            probs[prompt.index] = torch.cat([*run_halving(model, batches, patch, name)])
            bar.count(prompt.index + 1, len(targets), "prompts")
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
