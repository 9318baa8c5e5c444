"""How attention and MLP enter the residual stream: directly, through a norm, or scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from nnterp_mcp.model.structure.anatomy import LayerAnatomy, Site
from nnterp_mcp.model.structure.call_recorder import ModuleCall, Tape, first_state


def find_contributions(
    layer: LayerAnatomy,
    call: ModuleCall,
    tape: Tape,
    raw: Sequence[Site | None],
    further: Sequence[Site | None],
    hidden: Tensor,
    paths: dict[int, str],
) -> tuple[list[Site | None], bool]:
    """The sites of the contributions to the residual stream.

    Args:
        layer: The layer so far.
        call: Its recorded call.
        tape: The whole recording.
        raw: The sites of what attention and MLP compute.
        further: Those of what else the layer computes.
        hidden: The layer's input, as wide as what attention and MLP read.
        paths: Each module's dotted path, by the module's id.

    Returns:
        For each of `raw`, the site of its contribution: the norm behind it where there is one, with the layer's
        multiplier. And True if these are all that the layer adds to its input.
    """
    calls = tape.inside(call)
    written = [site for site in (*raw, *further) if site]
    normed = [_norm_behind(site, calls, hidden, paths) or site for site in written]
    factors = _multipliers(layer, call, tape, normed)
    final = {site.path: replace(end, factor=by) for site, end, by in zip(written, normed, factors, strict=True)}
    added = [None if site is None else final[site.path] for site in raw]
    return added, _is_additive(layer, call, tape, [site for site in added if site is not None])


def output_site(call: ModuleCall | None, calls: list[ModuleCall], hidden: Tensor, paths: dict[int, str]) -> Site | None:
    """The module whose output is what a sublayer computes, also where the sublayer adds the residual stream itself."""
    site = inner_site(call, hidden, paths)
    if call is None or site is None:
        return site
    maps = [inner for inner in calls if inner.within(call.module) and inner is not call and inner.is_linear]
    states = [value for _, value in call.tensors if value.shape == hidden.shape]
    if not maps or not isinstance(maps[-1].output, Tensor) or maps[-1].output.shape != hidden.shape:
        return site
    added = maps[-1].output
    sums = [site.read_output(call.output)]
    sums += [
        inner.tensors[0][1]
        for inner in calls
        if inner.start > maps[-1].end and inner.within(call.module) and inner.tensors
    ]
    if hidden.device.type != "meta" and any(_is_sum(total, added, state) for total in sums for state in states):
        return inner_site(maps[-1], hidden, paths)
    return site


def _is_sum(total: Tensor, one: Tensor, other: Tensor) -> bool:
    return total.shape == one.shape and torch.allclose(total - one, other, rtol=1e-2, atol=1e-4)


def _norm_behind(site: Site, calls: list[ModuleCall], hidden: Tensor, paths: dict[int, str]) -> Site | None:
    """The norm that follows a sublayer: it reads the sublayer's output, and no other module reads its own."""
    call = next(call for call in reversed(calls) if call.module is site.module)
    state = site.read_output(call.output)
    norm = next((other for other in calls if other.start > call.end and _reads(other, state)), None)
    if norm is None or not is_norm(norm.module) or len(norm.tensors) > 1:
        return None
    output = first_state(norm.output)[1]
    if output is None or any(other.start > norm.end and _reads(other, output) for other in calls):
        return None
    return inner_site(norm, hidden, paths)


def _reads(call: ModuleCall, state: Tensor) -> bool:
    return any(value is state for _, value in call.tensors)


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


def _is_additive(layer: LayerAnatomy, call: ModuleCall, tape: Tape, added: list[Site]) -> bool:
    change = _changes(layer, call, tape, added)
    if change is None:
        return False
    output = layer.block.read_output(call.output)
    missing = change[0] - sum(change[1:], torch.zeros_like(change[0]))
    return bool((missing.abs() <= 1e-2 * output.float().abs() + 1e-3 * float(output.abs().max())).all())


def inner_site(call: ModuleCall | None, hidden: Tensor, paths: dict[int, str]) -> Site | None:
    """The site of a module inside a layer, None for none."""
    if call is None:
        return None
    entry = next((place for place, value in call.tensors if value.shape[:-1] == hidden.shape[:-1]), None)
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


def is_norm(module: nn.Module) -> bool:
    """True for norms: all weights are vectors, or the class name says so (some have gates inside)."""
    if "norm" in type(module).__name__.lower():
        return True
    weights = list(module.parameters())
    return bool(weights) and all(weight.ndim <= 1 for weight in weights)
