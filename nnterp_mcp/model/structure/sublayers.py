"""Finds what is inside one layer: attention, the MLP, and what else moves information between positions."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nnterp_mcp.model.structure.anatomy import LayerAnatomy, Site
from nnterp_mcp.model.structure.call_recorder import ModuleCall, Tape, first_state
from nnterp_mcp.model.structure.contributions import find_contributions, inner_site, is_norm, output_site
from nnterp_mcp.model.structure.rename import Names, RenameConfig, find_named


def resolve_sublayers(
    layer: LayerAnatomy, call: ModuleCall, tape: Tape, paths: dict[int, str], width: int, names: RenameConfig
) -> LayerAnatomy:
    """Fill in a layer's attention, MLP and kind.

    Args:
        layer: The layer so far: its number, its block and the kind that the configuration gives it.
        call: Its recorded call.
        tape: The whole recording.
        paths: Each module's dotted path, by the module's id.
        width: The width of what attention and MLP read and return.
        names: Names of modules that structure alone does not identify.
    """
    calls = tape.inside(call)
    state = layer.block.read_input((call.args, call.kwargs))
    hidden = state[..., :width]
    attentions = [] if names.ignore_attn else _find_attentions(call, calls, hidden)
    named = _named(call, calls, names.attn_name)
    attention = named or (attentions[0] if len(attentions) == 1 else None)
    core = _core(attention, calls)
    others = [
        inner
        for inner in _outermost(calls, call, hidden, attentions)
        if not any(inner.within(found.module) for found in attentions)
    ]
    mixers = [inner for inner in others if _mixes_positions(inner, tape)]
    mlps = [] if names.ignore_mlp else [inner for inner in others if inner not in mixers]
    mlp = _named(call, calls, names.mlp_name) or (mlps[0] if len(mlps) == 1 else None)
    notes = [
        _note("attention", attentions, paths) if named is None else "",
        _note("MLP", mlps, paths) if mlp is None else "",
    ]
    raw = [
        inner_site(_named(call, calls, name), hidden, paths) or output_site(part, calls, hidden, paths)
        for name, part in ((names.attn_output_source, attention), (names.mlp_output_source, mlp))
    ]
    added, additive = find_contributions(
        layer,
        call,
        tape,
        raw,
        [inner_site(inner, hidden, paths) for inner in others if inner is not mlp],
        hidden,
        paths,
    )
    return replace(
        layer,
        attention=inner_site(attention, hidden, paths),
        attention_raw=raw[0],
        attention_contribution=added[0],
        core=inner_site(core, hidden, paths),
        output_projection=None if core is None else _output_projection(core, attention, calls, hidden, paths),
        **({} if core is None else _heads(core, hidden)),
        mlp=inner_site(mlp, hidden, paths),
        mlp_raw=raw[1],
        **_neurons(raw[1], calls, hidden, paths),
        mlp_contribution=added[1],
        mixers=tuple(paths[id(inner.module)] for inner in mixers),
        kind=layer.kind or _kind(attention, mixers),
        additive=additive,
        note="; ".join(note for note in notes if note),
    )


def _note(part: str, found: list[ModuleCall], paths: dict[int, str]) -> str:
    if len(found) < 2:
        return ""
    listed = ", ".join(
        paths[id(inner.module)].rsplit(".", 1)[-1] if part == "MLP" else paths[id(inner.module)] for inner in found
    )
    return f"it has {len(found)} {part} modules: {listed}"


def _named(block: ModuleCall, calls: list[ModuleCall], names: Names) -> ModuleCall | None:
    module = find_named(block.module, names)
    return next((call for call in reversed(calls) if call.module is module), None)


def _find_attentions(block: ModuleCall, calls: list[ModuleCall], hidden: Tensor) -> list[ModuleCall]:
    """The attention modules: for each product of probabilities and values, the smallest module around it that also
    projects the result back, with its bare wrappers.

    Softmaxes over something else (experts, the layers below) are not followed by a projection of their own.
    """
    cores = [inner for inner in calls if inner.attending is not None]
    found: list[ModuleCall] = []
    for core in cores:
        for outer in core.lineage():
            if outer is block:
                break
            if _returns_hidden(outer, hidden) and _projects_after(outer, core, calls):
                attention = _unwrap(outer, block, calls, hidden)
                found += [attention] if all(other.module is not attention.module for other in found) else []
                break
    return found or cores[:1]


def _core(attention: ModuleCall | None, calls: list[ModuleCall]) -> ModuleCall | None:
    if attention is None:
        return None
    inside = [inner for inner in calls if inner.attending is not None and inner.within(attention.module)]
    return next(iter(inside), None)


def _projects_after(outer: ModuleCall, core: ModuleCall, calls: list[ModuleCall]) -> bool:
    """True if a linear map runs inside `outer` after the product with the values.

    That product runs directly inside the core, so an output projection inside the core comes after the projections
    of the layer's input: it is the last one, and its input is another tensor.
    """
    maps = [call for call in calls if call.within(outer.module) and call.is_linear]
    if not maps:
        return False
    last = maps[-1]
    if not core.start < last.start:
        return False
    if last.start > core.end:
        return True
    inputs = [id(next((a for a in call.args if isinstance(a, Tensor)), None)) for call in maps]
    return inputs.count(inputs[-1]) == 1 and len(maps) > 1


def _unwrap(attention: ModuleCall, block: ModuleCall, calls: list[ModuleCall], hidden: Tensor) -> ModuleCall:
    outer = attention.parent
    while outer is not None and outer is not block:
        siblings = [call for call in calls if call.parent is outer]
        if len(siblings) > 1 or not _returns_hidden(outer, hidden):
            break
        attention, outer = outer, outer.parent
    return attention


def _outermost(
    calls: list[ModuleCall], block: ModuleCall, hidden: Tensor, attentions: list[ModuleCall]
) -> list[ModuleCall]:
    """The outermost modules, other than attention, that map hidden states to hidden states by matrices."""
    around = [outer for attention in attentions for outer in attention.lineage() if outer is not attention]
    norms = {call.module for call in calls if is_norm(call.module)}
    found: list[ModuleCall] = []
    for call in calls:
        inside = any(outer in found or outer.module in norms for outer in call.lineage())
        transforms = call.has_matrices and not call.is_linear
        if not inside and call not in around and _maps_hidden(call, hidden) and transforms:
            found.append(call)
    return found


def _returns_hidden(call: ModuleCall, hidden: Tensor) -> bool:
    """True if a module has one input per position and returns hidden states."""
    first = next((value for _, value in call.tensors), None)
    output = first_state(call.output)[1]
    return (
        first is not None
        and first.shape[:-1] == hidden.shape[:-1]
        and output is not None
        and output.shape == hidden.shape
    )


def _maps_hidden(call: ModuleCall, hidden: Tensor) -> bool:
    return _returns_hidden(call, hidden) and call.tensors[0][1].shape == hidden.shape


@torch.no_grad()
def _mixes_positions(call: ModuleCall, tape: Tape) -> bool:
    """True if the output at the last position depends on earlier inputs; tested once per kind of module."""
    alike = (type(call.module), *(type(child) for child in call.module.children()))
    if alike not in tape.mixing:
        tape.mixing[alike] = _depends_on_earlier(call)
    return tape.mixing[alike]


def _depends_on_earlier(call: ModuleCall) -> bool:
    place, state = call.tensors[0]
    if state.device.type == "meta" or state.ndim < 3:
        return False
    changed = state.clone()
    changed[..., :-1, :] = -changed[..., :-1, :].flip(-1)
    before, after = _run_again(call, place, state), _run_again(call, place, changed)
    return not torch.allclose(before[..., -1, :], after[..., -1, :], rtol=1e-3, atol=1e-5)


def _run_again(call: ModuleCall, place: int | str, state: Tensor) -> Tensor:
    args = tuple(state if index == place else value for index, value in enumerate(call.args))
    kwargs = {name: state if name == place else value for name, value in call.kwargs.items()}
    output = first_state(call.module(*args, **kwargs))[1]
    assert output is not None
    return output


def _output_projection(
    core: ModuleCall, attention: ModuleCall | None, calls: list[ModuleCall], hidden: Tensor, paths: dict[int, str]
) -> Site | None:
    outer = attention or core
    maps = [call for call in calls if call.within(outer.module) and call.is_linear]
    if not maps or not isinstance(maps[-1].output, Tensor) or maps[-1].output.shape != hidden.shape:
        return None
    return Site(maps[-1].module, paths[id(maps[-1].module)])


def _neurons(mlp: Site | None, calls: list[ModuleCall], hidden: Tensor, paths: dict[int, str]) -> dict[str, Any]:
    """The linear map whose output is the MLP's own, where it reads one vector for each position, and its width."""
    outer = next((call for call in reversed(calls) if mlp is not None and call.module is mlp.module), None)
    if mlp is None or outer is None:
        return {}
    output = mlp.read_output(outer.output)
    for call in reversed(calls):
        if call.within(mlp.module) and call.is_linear and call.output is output:
            entry, read = call.tensors[0]
            if read.shape[:-1] != hidden.shape[:-1]:
                return {}
            return {"mlp_projection": Site(call.module, paths[id(call.module)], entry), "num_neurons": read.shape[-1]}
    return {}


def _heads(core: ModuleCall, hidden: Tensor) -> dict[str, Any]:
    """Number of heads, the product with the values, and the product of queries and keys."""
    seen = core.attending
    assert seen is not None
    product = seen.product
    weights = product.operands[product.probabilities or 0]
    count = weights.numel() // (hidden.shape[0] * weights.shape[-1] * weights.shape[-2])
    if product.fused:
        return {"num_heads": count}
    scoring = next((other.product for other in core.products if other.product.ordinal == product.scores), None)
    if scoring is not None and (scoring.einsum or not _splits_into(scoring.operands[0], count, hidden)):
        scoring = None
    return {
        "num_heads": count,
        "product": seen.origin,
        "score_product": scoring.ordinal - core.first_product if scoring is not None else None,
        "values_by_head": not product.einsum and _holds_heads(product.operands[1], count, hidden),
    }


def _holds_heads(values: Tensor, heads: int, hidden: Tensor) -> bool:
    """True if values have a head dimension, or one head's values serve all."""
    return _splits_into(values, heads, hidden) or (values.ndim == 4 and _splits_into(values, 1, hidden))


def _splits_into(tensor: Tensor, heads: int, hidden: Tensor) -> bool:
    """True if a tensor is (row, head, position, …), possibly with rows and heads in one dimension."""
    return tensor.numel() == hidden.shape[0] * heads * tensor.shape[-1] * tensor.shape[-2]


def _kind(attention: ModuleCall | None, mixers: list[ModuleCall]) -> str:
    if attention is not None:
        return "full_attention"
    if mixers:
        name = type(mixers[0].module).__name__
        return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    return "mlp"
