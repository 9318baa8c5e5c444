"""The functions of nnterp 1.3's modules that work on a model, for code that is ported by changing an import.

They take a `StandardizedTransformer`, or any nnsight model of a Hugging Face causal LM. What reads or assigns
hidden states works inside a trace, as it did there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import nnsight
import torch
from jaxtyping import Float
from nnsight.intervention.envoy import Envoy
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model import vocabulary
from nnterp_mcp.model.accessors import Part, assign_output, layer_index, read_output, require_part
from nnterp_mcp.model.anatomy import Anatomy, Site
from nnterp_mcp.model.modules import ModuleAccessor
from nnterp_mcp.model.probe import probe
from nnterp_mcp.model.rename import RenameConfig, get_rename_dict
from nnterp_mcp.model.resolve import resolve
from nnterp_mcp.model.standardized import StandardizedTransformer

States = Float[Tensor, "batch position hidden"]
GetModuleOutput = Callable[[Any, int], Tensor]


def get_embed_tokens(nn_model: Any) -> Envoy:
    """The token embedding."""
    return _envoy(nn_model, _anatomy(nn_model).embed_tokens)


def get_layers(nn_model: Any) -> Envoy:
    """The list of layers."""
    return _envoy(nn_model, _anatomy(nn_model).layers_module)


def get_num_layers(nn_model: Any) -> int:
    """Number of layers."""
    return _anatomy(nn_model).num_layers


def get_num_attention_heads(nn_model: Any, raise_error: bool = True, rename_config: Any = None) -> int:
    """Number of attention heads of a layer."""
    return _anatomy(nn_model).num_heads


def get_hidden_size(nn_model: Any, raise_error: bool = True, rename_config: Any = None) -> int:
    """Width of the residual stream."""
    return _anatomy(nn_model).hidden_size


def get_vocab_size(nn_model: Any, raise_error: bool = True, rename_config: Any = None) -> int:
    """Number of logits at each position."""
    return _anatomy(nn_model).vocab_size


def get_ignores(nn_model: Any, rename_config: RenameConfig | None = None) -> list[str]:
    """Which of `attention` and `mlp` no layer has as a module."""
    layers = _anatomy(nn_model).layers
    ignored = {"mlp": all(layer.mlp is None for layer in layers), "attention": not _anatomy(nn_model).attention_layers}
    if rename_config is not None:
        ignored["mlp"] |= bool(rename_config.ignore_mlp)
        ignored["attention"] |= bool(rename_config.ignore_attn)
    return [part for part, missing in ignored.items() if missing]


def get_layer(nn_model: Any, layer: int) -> Envoy:
    """One layer."""
    return _envoy(nn_model, _site(nn_model, layer, "block"))


def get_layer_input(nn_model: Any, layer: int) -> States:
    """The residual stream before a layer."""
    site = _site(nn_model, layer, "block")
    return site.read_input(_envoy(nn_model, site).inputs)


def get_layer_output(nn_model: Any, layer: int) -> States:
    """The residual stream after a layer."""
    return _read(nn_model, layer, "block")


def set_layer_output(nn_model: Any, layer: int, tensor: States) -> None:
    """Let the model go on with another residual stream after a layer."""
    site = _site(nn_model, layer, "block")
    assign_output(_envoy(nn_model, site), site, tensor)


def get_attention(nn_model: Any, layer: int) -> Envoy:
    """A layer's attention module."""
    return _envoy(nn_model, _site(nn_model, layer, "attention"))


def get_attention_output(nn_model: Any, layer: int) -> States:
    """What a layer's attention adds to the residual stream."""
    return _read(nn_model, layer, "attention_contribution")


def get_mlp(nn_model: Any, layer: int) -> Envoy:
    """A layer's MLP module."""
    return _envoy(nn_model, _site(nn_model, layer, "mlp"))


def get_mlp_output(nn_model: Any, layer: int) -> States:
    """What a layer's MLP adds to the residual stream."""
    return _read(nn_model, layer, "mlp_contribution")


def get_logits(nn_model: Any) -> Float[Tensor, "batch position vocabulary"]:
    """The model's logits."""
    return nn_model.output.logits


def get_next_token_probs(nn_model: Any) -> Float[Tensor, "batch vocabulary"]:
    """Probabilities of the next token of each row."""
    if isinstance(nn_model, StandardizedTransformer):
        return nn_model.next_token_probs
    return get_logits(nn_model)[:, -1].softmax(-1)


def get_unembed_norm(nn_model: Any) -> Envoy:
    """The norm between the last layer and the head."""
    site = _anatomy(nn_model).ln_final
    if site is None:
        raise InvalidRequest("this model has no norm between its last layer and its head.")
    return _envoy(nn_model, site)


def get_unembed(nn_model: Any) -> Envoy:
    """The module from hidden states to logits."""
    site = _anatomy(nn_model).lm_head
    if site is None:
        raise InvalidRequest("this model's head is not a module of its own.")
    return _envoy(nn_model, site)


def project_on_vocab(nn_model: Any, h: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows vocabulary"]:
    """The logits for hidden states after the last layer; exact."""
    if isinstance(nn_model, StandardizedTransformer):
        return nn_model.project_on_vocab(h)
    with _quiet(nn_model):
        return vocabulary.project(nn_model._module, _anatomy(nn_model), h, type(nn_model._module).__name__)


def skip_layer(nn_model: Any, layer: int, skip_with: States | None = None) -> None:
    """Leave out one layer."""
    skip_layers(nn_model, layer, layer, skip_with)


def skip_layers(nn_model: Any, start_layer: int, end_layer: int, skip_with: States | None = None) -> None:
    """Leave out layers from the first to the last, inclusive."""
    states = get_layer_input(nn_model, start_layer) if skip_with is None else skip_with
    for layer in range(start_layer, end_layer + 1):
        site = _site(nn_model, layer, "block")
        if site.carries:
            assign_output(_envoy(nn_model, site), site, states)
        else:
            _envoy(nn_model, site).skip(site.make_output(states))


def compute_next_token_probs(
    nn_model: Any, prompt: str | list[str], remote: bool = False
) -> Float[Tensor, "batch vocabulary"]:
    """Probabilities of the next token after each prompt, on the CPU."""
    _refuse_remote(remote)
    with torch.no_grad(), nn_model.trace(prompt):
        probs = nnsight.save(get_next_token_probs(nn_model).cpu())
    return probs  # noqa: RET504 - the trace ends before


@torch.no_grad()
def get_token_activations(
    nn_model: Any,
    prompts: str | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    get_activations: GetModuleOutput | None = None,
    remote: bool = False,
    idx: int | None = None,
    tracer: Any = None,
) -> Float[Tensor, "layer prompt hidden"]:
    """The hidden states at one position of each prompt, layer by layer, on the CPU.

    Args:
        nn_model: The model.
        prompts: The prompts; None inside a trace of one's own.
        layers: Which layers; all by default.
        get_activations: What to read of a layer; its output by default.
        remote: Not offered.
        idx: The position in the batch; the last by default. Negative ones need padding on the left.
        tracer: The trace that this is called in, if there is one.

    Raises:
        InvalidRequest: No prompt and no trace came, or the position would be padding.
    """
    _refuse_remote(remote)
    position = -1 if idx is None else idx
    side = nn_model.tokenizer.padding_side
    if (position < 0 and side != "left") or (position > 0 and side != "right"):
        raise InvalidRequest(f"position {position} would be padding in some rows: text is padded on the {side}.")
    read = get_layer_output if get_activations is None else get_activations
    chosen = list(range(get_num_layers(nn_model))) if layers is None else list(layers)
    if tracer is not None:
        return torch.stack([read(nn_model, layer)[:, position] for layer in chosen])
    if prompts is None:
        raise InvalidRequest("prompts are missing: give some, or the tracer of the trace that this is called in.")
    found: list[Tensor] = []
    with nn_model.trace(prompts if isinstance(prompts, str) else list(prompts)) as tracer:
        for layer in chosen:
            found.append(nnsight.save(read(nn_model, layer)[:, position].cpu()))  # noqa: PERF401 - a trace
        tracer.stop()
    return torch.stack(found)


def collect_token_activations_batched(
    nn_model: Any,
    prompts: Sequence[str],
    batch_size: int,
    layers: Sequence[int] | None = None,
    get_activations: GetModuleOutput | None = None,
    remote: bool = False,
    idx: int | None = None,
    tqdm: Callable[..., Any] | None = None,
    use_session: bool = True,
) -> Float[Tensor, "layer prompt hidden"]:
    """`get_token_activations` for many prompts, a batch at a time."""
    starts: Any = range(0, len(prompts), batch_size)
    parts = [
        get_token_activations(nn_model, prompts[at : at + batch_size], layers, get_activations, remote, idx)
        for at in (starts if tqdm is None else tqdm(starts))
    ]
    return torch.cat(parts, dim=1)


def collect_last_token_activations_session(
    nn_model: Any,
    prompts: Sequence[str],
    batch_size: int,
    layers: Sequence[int] | None = None,
    get_activations: GetModuleOutput | None = None,
    remote: bool = False,
    idx: int | None = None,
) -> Float[Tensor, "layer prompt hidden"]:
    """The same as `collect_token_activations_batched`: locally, a session saves nothing."""
    return collect_token_activations_batched(nn_model, prompts, batch_size, layers, get_activations, remote, idx)


def _anatomy(nn_model: Any) -> Anatomy:
    if isinstance(nn_model, StandardizedTransformer):
        return nn_model.anatomy
    if "_nnterp_anatomy" not in nn_model.__dict__:
        with _quiet(nn_model):
            found = resolve(nn_model._module, probe(nn_model._module))
        object.__setattr__(nn_model, "_nnterp_anatomy", found)
    return nn_model.__dict__["_nnterp_anatomy"]


def _quiet(nn_model: Any) -> Any:
    return StandardizedTransformer.standing_down(nn_model)


def _site(nn_model: Any, layer: int, part: Part) -> Site:
    anatomy = _anatomy(nn_model)
    name = str(getattr(nn_model, "name", None) or type(nn_model._module).__name__)
    return require_part(anatomy.layers[layer_index(layer, anatomy, name)], part, anatomy, name)


def _envoy(nn_model: Any, site: Site) -> Any:
    return nn_model.interleaver.envoys[id(site.module)]


def _read(nn_model: Any, layer: int, part: Part) -> States:
    site = _site(nn_model, layer, part)
    return read_output(_envoy(nn_model, site), site)


def _refuse_remote(remote: bool) -> None:
    if remote:
        raise InvalidRequest("remote=True is not offered here: the model runs on this machine.")


__all__ = [
    "ModuleAccessor",
    "RenameConfig",
    "collect_last_token_activations_session",
    "collect_token_activations_batched",
    "compute_next_token_probs",
    "get_attention",
    "get_attention_output",
    "get_embed_tokens",
    "get_hidden_size",
    "get_ignores",
    "get_layer",
    "get_layer_input",
    "get_layer_output",
    "get_layers",
    "get_logits",
    "get_mlp",
    "get_mlp_output",
    "get_next_token_probs",
    "get_num_attention_heads",
    "get_num_layers",
    "get_rename_dict",
    "get_token_activations",
    "get_unembed",
    "get_unembed_norm",
    "get_vocab_size",
    "project_on_vocab",
    "set_layer_output",
    "skip_layer",
    "skip_layers",
]
