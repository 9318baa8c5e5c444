"""Finds what is inside one layer: attention, the MLP, and what else moves information between positions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from nnterp_mcp.model.structure.anatomy import LayerAnatomy, Site
from nnterp_mcp.model.structure.call_recorder import ModuleCall, Tape
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
        _site(_named(call, calls, name), hidden, paths) or _without_stream(part, calls, hidden, paths)
        for name, part in ((names.attn_output_source, attention), (names.mlp_output_source, mlp))
    ]
    written = [site for site in [*raw, *(_site(other, hidden, paths) for other in others if other is not mlp)] if site]
    normed = [_norm_behind(site, calls, hidden, paths) or site for site in written]
    factors = dict(zip((site.path for site in written), _multipliers(layer, call, tape, normed), strict=True))
    added = [
        None if site is None else replace(_norm_behind(site, calls, hidden, paths) or site, factor=factors[site.path])
        for site in raw
    ]
    return replace(
        layer,
        attention=_site(attention, hidden, paths),
        attention_raw=raw[0],
        attention_contribution=added[0],
        core=_site(core, hidden, paths),
        output_projection=None if core is None else _output_projection(core, attention, calls, hidden, paths),
        **({} if core is None else _heads(core, hidden)),
        mlp=_site(mlp, hidden, paths),
        mlp_raw=raw[1],
        mlp_contribution=added[1],
        mixers=tuple(paths[id(inner.module)] for inner in mixers),
        kind=layer.kind or _kind(attention, mixers),
        additive=_is_additive(layer, call, tape, [site for site in added if site is not None]),
        note="; ".join(note for note in notes if note),
    )


def _note(part: str, found: list[ModuleCall], paths: dict[int, str]) -> str:
    if len(found) < 2:
        return ""
    listed = ", ".join(
        paths[id(inner.module)].rsplit(".", 1)[-1] if part == "MLP" else paths[id(inner.module)] for inner in found
    )
    return f"it has {len(found)} {part} modules: {listed}"


def _is_additive(layer: LayerAnatomy, call: ModuleCall, tape: Tape, added: list[Site]) -> bool:
    change = _changes(layer, call, tape, added)
    if change is None:
        return False
    output = layer.block.read_output(call.output)
    missing = change[0] - sum(change[1:], torch.zeros_like(change[0]))
    return bool((missing.abs() <= 1e-2 * output.float().abs() + 1e-3 * float(output.abs().max())).all())


def _changes(layer: LayerAnatomy, call: ModuleCall, tape: Tape, written: list[Site]) -> list[Tensor] | None:
    """The change that a layer makes to the residual stream, then the outputs of some sites; None where unknown."""
    before, after = layer.block.read_input((call.args, call.kwargs)), layer.block.read_output(call.output)
    states: list[Tensor] = []
    for site in written:
        part = tape.of(site.module)
        if part is None or part.mutated or site.read_output(part.output).shape != before.shape:
            return None
        states.append(site.read_output(part.output).float())
    return None if after.device.type == "meta" else [after.float() - before.float(), *states]


def _multipliers(layer: LayerAnatomy, call: ModuleCall, tape: Tape, written: list[Site]) -> list[float]:
    """The multipliers that a layer applies to its contributions to the residual stream; 1 where it has none.

    On the meta device, where nothing can be computed, a multiplier is recognised by its name.
    """
    given = {name: value for name, value in vars(call.module).items() if isinstance(value, float) and value}
    if tape.logits.device.type == "meta":
        return [next((value for name, value in given.items() if name.startswith("residual_")), 1.0)] * len(written)
    plain, found = [1.0] * len(written), _changes(layer, call, tape, written)
    if not given or not written or found is None:
        return plain
    change, *states = found

    def miss(factors: Sequence[float]) -> float:
        parts = (factor * state for factor, state in zip(factors, states, strict=True))
        return float((change - sum(parts, torch.zeros_like(change))).abs().mean())

    size, most = float(change.abs().mean()), miss(plain)
    if most <= 1e-3 * size:
        return plain
    best = min(product([1.0, *dict.fromkeys(given.values())], repeat=len(states)), key=miss)
    return list(best) if miss(best) < min(0.05 * size, 0.5 * most) else plain


def _norm_behind(site: Site, calls: list[ModuleCall], hidden: Tensor, paths: dict[int, str]) -> Site | None:
    """The norm that follows a sublayer: it reads the sublayer's output, and no other module reads its own."""
    call = next(call for call in reversed(calls) if call.module is site.module)
    state = site.read_output(call.output)
    norm = next((other for other in calls if other.start > call.end and _reads(other, state)), None)
    if norm is None or not is_norm(norm.module) or len(_tensors(norm)) > 1:
        return None
    output = _first_tensor(norm.output)
    if output is None or any(other.start > norm.end and _reads(other, output) for other in calls):
        return None
    return _site(norm, hidden, paths)


def _reads(call: ModuleCall, state: Tensor) -> bool:
    return any(value is state for _, value in _tensors(call))


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
    maps = [call for call in calls if call.within(outer.module) and _is_linear(call)]
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
        transforms = _has_matrices(call.module) and not _is_linear(call)
        if not inside and call not in around and _maps_hidden(call, hidden) and transforms:
            found.append(call)
    return found


def _returns_hidden(call: ModuleCall, hidden: Tensor) -> bool:
    """True if a module has one input per position and returns hidden states."""
    first = next((value for _, value in _tensors(call)), None)
    output = _first_tensor(call.output)
    return (
        first is not None
        and first.shape[:-1] == hidden.shape[:-1]
        and output is not None
        and output.shape == hidden.shape
    )


def _maps_hidden(call: ModuleCall, hidden: Tensor) -> bool:
    first = next((value for _, value in _tensors(call)), None)
    output = _first_tensor(call.output)
    return first is not None and output is not None and first.shape == hidden.shape and output.shape == hidden.shape


def _tensors(call: ModuleCall) -> list[tuple[int | str, Tensor]]:
    items: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    return [(place, value) for place, value in items if isinstance(value, Tensor) and value.is_floating_point()]


def _first_tensor(output: Any) -> Tensor | None:
    items = output if isinstance(output, tuple | list) else [output]
    return next((item for item in items if isinstance(item, Tensor) and item.is_floating_point()), None)


def is_norm(module: nn.Module) -> bool:
    """True for norms: all weights are vectors, or the class name says so (some have gates inside)."""
    if "norm" in type(module).__name__.lower():
        return True
    weights = list(module.parameters())
    return bool(weights) and all(weight.ndim <= 1 for weight in weights)


def _has_matrices(module: nn.Module) -> bool:
    return any(weight.ndim > 1 for weight in module.parameters())


def _is_linear(call: ModuleCall) -> bool:
    module = call.module
    return _has_matrices(module) and not any(True for _ in module.children()) and len(_tensors(call)) == 1


@torch.no_grad()
def _mixes_positions(call: ModuleCall, tape: Tape) -> bool:
    """True if the output at the last position depends on earlier inputs; tested once per kind of module."""
    alike = (type(call.module), *(type(child) for child in call.module.children()))
    if alike not in tape.mixing:
        tape.mixing[alike] = _depends_on_earlier(call)
    return tape.mixing[alike]


def _depends_on_earlier(call: ModuleCall) -> bool:
    place, state = _tensors(call)[0]
    if state.device.type == "meta" or state.ndim < 3:
        return False
    changed = state.clone()
    changed[..., :-1, :] = -changed[..., :-1, :].flip(-1)
    before, after = _run_again(call, place, state), _run_again(call, place, changed)
    return not torch.allclose(before[..., -1, :], after[..., -1, :], rtol=1e-3, atol=1e-5)


def _run_again(call: ModuleCall, place: int | str, state: Tensor) -> Tensor:
    args = tuple(state if index == place else value for index, value in enumerate(call.args))
    kwargs = {name: state if name == place else value for name, value in call.kwargs.items()}
    output = _first_tensor(call.module(*args, **kwargs))
    assert output is not None
    return output


def _site(call: ModuleCall | None, hidden: Tensor, paths: dict[int, str]) -> Site | None:
    if call is None:
        return None
    entry = next((place for place, value in _tensors(call) if value.shape[:-1] == hidden.shape[:-1]), None)
    exit_: int | None = None
    width = 1
    if isinstance(call.output, tuple | list):
        width = len(call.output)
        exit_ = next(
            (
                place
                for place, item in enumerate(call.output)
                if isinstance(item, Tensor) and item.shape == hidden.shape
            ),
            0,
        )
    return Site(call.module, paths[id(call.module)], entry, exit_, width, mutated=call.mutated)


def _without_stream(
    call: ModuleCall | None, calls: list[ModuleCall], hidden: Tensor, paths: dict[int, str]
) -> Site | None:
    """The module whose output is what a sublayer computes, also where the sublayer adds the residual stream itself."""
    site = _site(call, hidden, paths)
    if call is None or site is None:
        return site
    maps = [inner for inner in calls if inner.within(call.module) and inner is not call and _is_linear(inner)]
    states = [value for _, value in _tensors(call) if value.shape == hidden.shape]
    if not maps or not isinstance(maps[-1].output, Tensor) or maps[-1].output.shape != hidden.shape:
        return site
    added = maps[-1].output
    sums = [site.read_output(call.output)]
    sums += [
        _tensors(inner)[0][1]
        for inner in calls
        if inner.start > maps[-1].end and inner.within(call.module) and _tensors(inner)
    ]
    if hidden.device.type != "meta" and any(_is_sum(total, added, state) for total in sums for state in states):
        return _site(maps[-1], hidden, paths)
    return site


def _is_sum(total: Tensor, one: Tensor, other: Tensor) -> bool:
    return total.shape == one.shape and torch.allclose(total - one, other, rtol=1e-2, atol=1e-4)


def _output_projection(
    core: ModuleCall, attention: ModuleCall | None, calls: list[ModuleCall], hidden: Tensor, paths: dict[int, str]
) -> Site | None:
    outer = attention or core
    maps = [call for call in calls if call.within(outer.module) and _is_linear(call)]
    if not maps or not isinstance(maps[-1].output, Tensor) or maps[-1].output.shape != hidden.shape:
        return None
    return Site(maps[-1].module, paths[id(maps[-1].module)])


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
