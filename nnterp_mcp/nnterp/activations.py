"""Reading activations and next-token distributions at one token of each prompt: the library's short forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import nnsight
import torch
from jaxtyping import Float
from nnsight import TransformersModel
from torch import Tensor

from nnterp_mcp.display.progress import progress_bar
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.accessors import StateList
from nnterp_mcp.model.loading.adoption import anatomy_of, named, standardize
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import Batch, encode_prompts
from nnterp_mcp.request.selectors import resolve_layers

GetActivations = Callable[[Any, int], Tensor]
"""Reads (batch, token, hidden) of one layer inside a trace."""


def get_layer_output(nn_model: Any, layer: int) -> Float[Tensor, "batch token hidden"]:
    """The residual stream after a layer, inside a trace.

    Args:
        nn_model: The model whose trace is running; any of nnsight's models of a causal LM.
        layer: The layer.
    """
    return StateList(named(nn_model), "block", "output")[layer]


def get_token_activations(
    nn_model: TransformersModel,
    prompts: str | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    get_activations: GetActivations | None = None,
    remote: bool = False,
    idx: int | None = None,
    tracer: Any = None,
) -> Float[Tensor, "layer prompt hidden"]:
    """Activations at one token of each prompt.

    Without a tracer the prompts run on their own, only as far as the last layer that is read. With one, the values of
    the running trace are returned, to be used or saved there.

    Args:
        nn_model: The model.
        prompts: Texts; not needed inside a trace.
        layers: Layers to read, in ascending order; all by default.
        get_activations: What to read of a layer; the residual stream after it by default.
        remote: Only False.
        idx: Token of the unpadded prompt, from either end; inside a trace, of the padded one. The last by default.
        tracer: The trace that is running.

    Raises:
        InvalidRequest: A layer or token does not exist, or a prompt is empty.
        Unsupported: `remote` is set.
    """
    if tracer is None:
        if prompts is None:
            raise InvalidRequest("prompts are missing: give some, or the tracer of the trace that is running.")
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return collect_token_activations_batched(nn_model, texts, len(texts), layers, get_activations, remote, idx)
    read = get_activations or get_layer_output
    at = -1 if idx is None else idx
    chosen = range(anatomy_of(nn_model).num_layers) if layers is None else layers
    first = read(nn_model, chosen[0])[:, at]
    return torch.stack([first, *(read(nn_model, layer)[:, at].to(first.device) for layer in chosen[1:])])


@torch.no_grad()
def collect_token_activations_batched(
    nn_model: TransformersModel,
    prompts: Sequence[str],
    batch_size: int,
    layers: Sequence[int] | None = None,
    get_activations: GetActivations | None = None,
    remote: bool = False,
    idx: int | None = None,
    tqdm: Callable[[Any], Any] | None = None,
    use_session: bool = True,
) -> Float[Tensor, "layer prompt hidden"]:
    """Activations at one token of each of many prompts, on the CPU; prompts of similar length share a batch.

    Args:
        nn_model: The model.
        prompts: Texts.
        batch_size: Prompts in a forward pass, at most.
        layers: Layers to read; all by default.
        get_activations: What to read of a layer; the residual stream after it by default.
        remote: Only False.
        idx: Token of the unpadded prompt, from either end; the last by default.
        tqdm: Wraps the batches to show progress; by default a bar appears after two seconds.
        use_session: Kept for nnterp's signature; batches always run one after another.

    Raises:
        InvalidRequest: A layer or token does not exist, or a prompt is empty.
        Unsupported: `remote` is set.
    """
    refuse_remote(remote)
    model = standardize(nn_model)
    chosen = resolve_layers("all" if layers is None else list(layers), model.num_layers, model.name)
    encoded = encode_prompts(model.tokenizer, prompts, model.name, model.context, model.embedded)
    at = -1 if idx is None else idx

    def read(batch: Batch, numbers: Sequence[int]) -> Float[Tensor, "row layer hidden"]:
        return _read(model, batch, chosen, get_activations or get_layer_output, at)

    work = Workload(encoded, batch_size=batch_size)
    groups = work.split(model)
    found: dict[int, Tensor] = {}
    with progress_bar() if tqdm is None else nullcontext() as bar:
        for group in tqdm(groups) if tqdm else groups:
            found |= zip(group, work.some(group).run(model, read), strict=True)
            if bar is not None:
                bar.count(len(found), len(encoded), "prompts")
    return torch.stack([found[number] for number in range(len(encoded))], dim=1)


def _read(
    model: StandardizedTransformer, batch: Batch, layers: Sequence[int], read: GetActivations, at: int
) -> Float[Tensor, "row layer hidden"]:
    places = [resolve_positions([at], prompt) for prompt in batch.prompts]
    columns = [padding + place for padding, (place,) in zip(batch.padding, places, strict=True)]
    rows = list(range(len(columns)))
    with model.trace(**batch.inputs, use_cache=False) as tracer:
        states = nnsight.save([read(model, layer)[rows, columns].cpu() for layer in layers])
        tracer.stop()
    return torch.stack(states, dim=1)


@torch.no_grad()
def compute_next_token_probs(
    nn_model: TransformersModel, prompt: str | Sequence[str], remote: bool = False
) -> Float[Tensor, "prompt vocabulary"]:
    """The distribution of the token after each prompt, on the CPU.

    Args:
        nn_model: The model.
        prompt: One text or several.
        remote: Only False.

    Raises:
        InvalidRequest: A prompt is empty.
        Unsupported: `remote` is set, or the model's lens is not exact.
    """
    model = standardize(nn_model)
    model.require("lens")
    last = get_token_activations(model, prompt, [model.num_layers - 1], remote=remote)[0]
    return model.project_on_vocab(last.to(model.device)).softmax(-1).cpu()


def refuse_remote(remote: bool) -> None:
    """Refuses remote execution by name.

    Raises:
        Unsupported: `remote` is set.
    """
    if remote:
        raise Unsupported("remote execution is not available yet", "Leave remote out to run on this machine.")
