"""Finds a model's anatomy by its structure: what ran in one short forward pass, on which shapes, when.

No list of module names decides. The layers are the longest list of modules through which hidden states run;
the head is what holds the output embedding; the final norm is what runs between the two; a layer's attention
is the module around a softmax over positions (see `products`), its MLP is the module that works on each
position alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.structure.anatomy import Anatomy, LayerAnatomy, Site
from nnterp_mcp.model.structure.attention_span import find_horizon
from nnterp_mcp.model.structure.call_recorder import ModuleCall, Tape, first_state, probe
from nnterp_mcp.model.structure.contributions import is_norm
from nnterp_mcp.model.structure.rename import Names, RenameConfig, find_named
from nnterp_mcp.model.structure.sublayers import resolve_sublayers


def resolve(model: nn.Module, tape: Tape | None = None, names: RenameConfig | None = None) -> Anatomy:
    """The anatomy of a causal LM.

    Args:
        model: A Hugging Face causal LM with weights.
        tape: A recorded forward pass of it, when there is one already.
        names: Names of modules that structure alone does not identify.

    Returns:
        The anatomy; its `faults` list what structure could not settle.

    Raises:
        Unsupported: No list of layers through which hidden states run was found.
    """
    tape = probe(model) if tape is None else tape
    names = names or RenameConfig()
    paths = {id(module): path for path, module in model.named_modules()}
    embedding = _input_embedding(model, paths, tape)
    head_call = _named_call(model, names.lm_head_name, tape) or _head(model, tape)
    layers_module, layer_calls = _layers(model, tape, find_named(model, names.layers_name))
    shape = tuple(_hidden(layer_calls[-1].output)[1].shape)
    hidden_size = shape[-1]
    norm_call = _named_call(model, names.ln_final_name, tape) or _final_norm(
        tape, layer_calls[-1], head_call, hidden_size
    )
    anatomy = Anatomy(
        embed_tokens=embedding,
        layers_module=Site(layers_module, paths[id(layers_module)]),
        layers=tuple(
            _layer(index, module, tape, paths, model, names) for index, module in enumerate(layers_module.children())
        ),
        ln_final=None if norm_call is None else hidden_site(norm_call, paths),
        lm_head=None if head_call is None else hidden_site(head_call, paths),
        hidden_size=hidden_size,
        vocab_size=int(tape.logits.shape[-1]),
        streams=_streams(shape, tape),
        stream_shape=shape,
        head_is_direct=_head_is_direct(tape, layer_calls[-1], norm_call, head_call),
    )
    return anatomy.with_faults(*_faults(anatomy, layer_calls, tape))


def hidden_site(call: ModuleCall, paths: dict[int, str]) -> Site:
    """The site of a call: which input and output is the hidden state."""
    place, _ = _hidden(call.output)
    others = [] if place is None else [item for at, item in enumerate(call.output) if at != place]
    return Site(
        call.module,
        paths[id(call.module)],
        next((place for place, value in call.tensors if value.ndim >= 2), None),
        place,
        1 + len(others),
        carries=any(_is_needed(item) for item in others),
        mutated=call.mutated,
    )


def _is_needed(item: Any) -> bool:
    """True unless a layer's other output is None or attention weights, which no later layer needs."""
    return item is not None and not (isinstance(item, Tensor) and item.ndim == 4)


def hidden_input(call: ModuleCall) -> Tensor | None:
    """The first floating-point input of two or more dimensions."""
    return next((value for _, value in call.tensors if value.ndim >= 2), None)


def _layer(
    index: int, module: nn.Module, tape: Tape, paths: dict[int, str], model: Any, names: RenameConfig
) -> LayerAnatomy:
    call, kind = tape.of(module), _layer_kind(model, index)
    if call is None:
        return LayerAnatomy(index, Site(module, paths[id(module)]), kind=kind, runs=False)
    layer = LayerAnatomy(index, hidden_site(call, paths), kind=kind, horizon=find_horizon(model, index, module))
    stream = int(layer.block.read_input((call.args, call.kwargs)).shape[-1])
    width = getattr(model.config.get_text_config(decoder=True), "hidden_size", stream)
    layer = resolve_sublayers(layer, call, tape, paths, min(width, stream), names)
    # The probe runs without a cache; with one, a recurrent layer returns its state too.
    recurrent = layer.block.exit is not None and layer.attention is None
    return replace(layer, block=replace(layer.block, carries=layer.block.carries or recurrent))


def _named_call(model: nn.Module, wanted: Names, tape: Tape) -> ModuleCall | None:
    module = find_named(model, wanted)
    return None if module is None else tape.of(module)


def _hidden(output: Any) -> tuple[int | None, Tensor]:
    place, state = first_state(output)
    if state is None:
        raise Unsupported(f"a layer returned {type(output).__name__}, which holds no hidden state")
    return place, state


def _has_hidden(output: Any) -> bool:
    return first_state(output)[1] is not None


def _input_embedding(model: Any, paths: dict[int, str], tape: Tape) -> Site:
    module = model.get_input_embeddings()
    if not isinstance(module, nn.Module) or isinstance(module, nn.ModuleList) or id(module) not in paths:
        raise Unsupported(f"{type(model).__name__} has no token embedding, or more than one")
    call = tape.of(module)
    return Site(module, paths[id(module)], mutated=call is not None and call.mutated)


def _head(model: Any, tape: Tape) -> ModuleCall | None:
    """The outermost call around the output embedding that goes from hidden states to logits."""
    embedding = model.get_output_embeddings()
    call = None if embedding is None else tape.of(embedding)
    if call is None:
        return None
    wide = tape.logits.shape[-1]
    ancestors = [
        outer
        for outer in call.lineage()
        if isinstance(outer.output, Tensor) and outer.output.shape[-1] == wide and hidden_input(outer) is not None
    ]
    return ancestors[-1] if ancestors else None


def _layers(model: nn.Module, tape: Tape, named: nn.Module | None) -> tuple[nn.Module, list[ModuleCall]]:
    """The list whose members carry the hidden states: the longest one, and the outermost of equals."""
    found: list[tuple[nn.Module, list[ModuleCall]]] = []
    for module in model.modules() if named is None else [named]:
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 0:
            calls = [tape.of(member) for member in module]
            ran = [call for call in calls if call is not None and _carries(call)]
            if ran and not any(call.within(other) for call in ran for other, _ in found):
                found.append((module, sorted(ran, key=lambda call: call.start)))
    candidates = [(module, calls) for module, calls in found if _is_chain(calls)]
    if not candidates:
        raise Unsupported(
            f"{type(model).__name__} has no list of layers through which hidden states run",
            "Name the layers with a RenameConfig if there is one.",
        )
    return max(candidates, key=lambda found: (len(found[1]), found[1][-1].end))


def _carries(call: ModuleCall) -> bool:
    hidden = hidden_input(call)
    return (
        hidden is not None
        and _has_hidden(call.output)
        and _hidden(call.output)[1].shape == hidden.shape
        and call.has_matrices
    )


def _is_chain(calls: list[ModuleCall]) -> bool:
    """True if the calls run one after another on states of one shape."""
    shapes = {tuple(_hidden(call.output)[1].shape) for call in calls}
    return len(shapes) == 1 and all(a.end < b.start for a, b in pairwise(calls))


def _final_norm(tape: Tape, last: ModuleCall, head: ModuleCall | None, hidden_size: int) -> ModuleCall | None:
    until = head.start if head is not None else tape.calls[0].end
    for call in tape.calls:
        if last.end < call.start < until and is_norm(call.module):
            hidden = hidden_input(call)
            if hidden is not None and hidden.shape[-1] == hidden_size and _has_hidden(call.output):
                return call
    return None


def _head_is_direct(tape: Tape, last: ModuleCall, norm: ModuleCall | None, head: ModuleCall | None) -> bool:
    """True if norm, head and logits each use the very tensor that the module before returned.

    Comparing values would not do: a softcap changes small logits by less than bfloat16 resolves.
    """
    if head is None or not isinstance(head.output, Tensor):
        return False
    state = _hidden(last.output)[1]
    for call in (norm, head):
        if call is None:
            continue
        if not isinstance(call.output, Tensor) or not _is_same(hidden_input(call), state):
            return False
        state = call.output
    if not _is_same(tape.logits, state):
        return False
    plain = type(head.module) is nn.Linear and all(_is_untouched(call) for call in (norm, head) if call is not None)
    # To compute a linear map again would take as long as several layers do.
    return plain or torch.equal(_recompute(last, norm, head), tape.logits)


def _is_same(one: Tensor | None, other: Tensor) -> bool:
    if one is None or one.shape != other.shape:
        return False
    if one.is_meta:  # which has no address
        return one.untyped_storage()._cdata == other.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
    return one.data_ptr() == other.data_ptr()


def _is_untouched(call: ModuleCall) -> bool:
    """True for a module of one input whose output nothing wrote to."""
    return len(call.args) + len(call.kwargs) == 1 and not call.mutated


@torch.no_grad()
def _recompute(last: ModuleCall, norm: ModuleCall | None, head: ModuleCall) -> Tensor:
    state = _hidden(last.output)[1]
    return head.module(state if norm is None else norm.module(state))


def _layer_kind(model: Any, index: int) -> str:
    config = model.config.get_text_config(decoder=True)
    for name in ("layer_types", "layers_block_type", "block_types"):
        kinds = getattr(config, name, None)
        if isinstance(kinds, list | tuple) and index < len(kinds):
            return str(kinds[index])
    return ""


def _streams(shape: tuple[int, ...], tape: Tape) -> int:
    if len(shape) < 4:
        return 1
    count = 1
    for size in shape[:-1]:
        count *= size
    return max(count // tape.input_ids.numel(), 1)


def _faults(anatomy: Anatomy, calls: list[ModuleCall], tape: Tape) -> Iterator[str]:
    shape, expected = anatomy.stream_shape, (*tape.input_ids.shape, anatomy.hidden_size)
    visits = max(sum(other.module is call.module for other in tape.calls) for call in calls)
    if anatomy.streams > 1:
        yield f"its layers carry {anatomy.streams} residual streams at once (shape {shape})"
    elif shape[-2] != expected[-2]:
        yield f"its layers return {shape[-2]} positions for {expected[-2]} tokens (shape {shape})"
    elif shape != expected:
        yield f"its layers return hidden states of shape {shape}, not {expected}"
    if visits > 1:
        yield f"its layers run {visits} times in one forward pass, so a layer has no one output"
    if len(calls) > 1 and not any(_continues(one, other, tape) for one, other in pairwise(calls)):
        yield "what one of its layers returns is not what the next one reads"


def _continues(one: ModuleCall, other: ModuleCall, tape: Tape) -> bool:
    """True if a layer reads the previous layer's output, alone or plus the output of a module between them."""
    state, following = _hidden(one.output)[1], hidden_input(other)
    if following is None or state.shape != following.shape:
        return False
    between = [
        call.output
        for call in tape.calls
        if one.end < call.start and call.end < other.start and isinstance(call.output, Tensor | tuple)
    ]
    added = [item for output in between for item in (output if isinstance(output, tuple) else (output,))]
    sums = [state + item for item in added if isinstance(item, Tensor) and item.shape == state.shape]
    return any(torch.allclose(total, following, rtol=1e-3, atol=1e-5) for total in (state, *sums))
