"""How sublayer outputs enter the residual stream: directly, normed, or scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnterp_mcp.engine.forward import Capture, forward
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.reductions import take_all
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.anatomy import LayerAnatomy, Site
from nnterp_mcp.model.structure.call_recorder import ModuleCall, Tape, first_state, probe
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt

Sublayer = Literal["attentions_output", "mlps_output"]


@dataclass(frozen=True)
class Write:
    """How the output of a sublayer enters the residual stream.

    Attributes:
        norm: The norm that it goes through first; None in most models.
        multiplier: What it is multiplied by then (granite's residual multiplier); 1 in most models.
        factor: How many times the stream has what the sublayer's site holds, which is behind both; 1 in nearly all.
    """

    norm: nn.Module | None = None
    multiplier: float = 1.0
    factor: float = 1.0


@dataclass(frozen=True)
class LayerWrites:
    """The terms of the difference between a layer's output and its input.

    Attributes:
        sublayers: Each sublayer that the layer has as a module, with its way into the stream.
        rest: There is another term: a state-space mixer, an MLP without a module of its own.
    """

    sublayers: dict[Sublayer, Write]
    rest: bool


_known: WeakKeyDictionary[nn.Module, list[LayerWrites | None]] = WeakKeyDictionary()


def find_writes(model: StandardizedTransformer) -> list[LayerWrites | None]:
    """The writes of each layer's sublayers, found once for each model in two short passes.

    Of a model whose weights are not here they are those that the structure shows; what does not add up is found later.

    Returns:
        One entry for each layer; None where input, sublayers and at most one other module do not make up the output,
        so that there is no telling what a sublayer adds.
    """
    if model.module not in _known:
        without_weights = all(weight.is_meta for weight in model.module.parameters())
        _known[model.module] = _read_structure(model) if without_weights else _observe(model)
    return _known[model.module]


def _read_structure(model: StandardizedTransformer) -> list[LayerWrites | None]:
    return [
        LayerWrites({name: Write() for name in sublayer_sites(layer)}, bool(layer.mixers)) if layer.runs else None
        for layer in model.anatomy.layers
    ]


@torch.inference_mode()
def _observe(model: StandardizedTransformer) -> list[LayerWrites | None]:
    with model.standing_down():
        tape = probe(model.module)
    ids: list[int] = tape.input_ids[0].tolist()
    inputs = {"input_ids": tape.input_ids, "attention_mask": torch.ones_like(tape.input_ids)}
    batch = Batch([EncodedPrompt(0, "", ids, [])], inputs, [0])
    running = [layer for layer in model.anatomy.layers if layer.runs]
    places = [place for layer in running for place in _places(layer)]
    # Not off the tape: some models add to a sublayer's output in place.
    found = forward(model, batch, captures=[Capture(place, take_all) for place in places]).values
    states = {place: state.double() for place, state in zip(places, found, strict=True)}
    return [_layer_writes(layer, tape, states) if layer.runs else None for layer in model.anatomy.layers]


def _places(layer: LayerAnatomy) -> list[Place]:
    return [Place(site, layer.index) for site in ("layers_input", *sublayer_sites(layer), "layers_output")]


def sublayer_sites(layer: LayerAnatomy) -> dict[Sublayer, Site]:
    """The modules whose outputs are what attention and MLP add to the residual stream, where a layer has them."""
    sites: dict[Sublayer, Site | None] = {
        "attentions_output": layer.attention_contribution,
        "mlps_output": layer.mlp_contribution,
    }
    return {name: site for name, site in sites.items() if site is not None}


def _layer_writes(layer: LayerAnatomy, tape: Tape, states: dict[Place, Tensor]) -> LayerWrites | None:
    before, *written, after = (states[place] for place in _places(layer))
    block = tape.of(layer.block.module)
    assert block is not None
    inside = tape.inside(block)
    own = [sublayer.module for sublayer in (layer.attention, layer.mlp) if sublayer is not None]
    others = [call for call in inside if not any(call.within(module) for module in own)]
    size = float(after.abs().max()) * max(1e-4, 4 * torch.finfo(tape.logits.dtype).eps)
    found = _fit(after - before, written, others, size)
    if found is None:
        return None
    factors, rest = found
    writes: dict[Sublayer, Write] = {
        name: _write(layer.attention_raw if name == "attentions_output" else layer.mlp_raw, site, factor)
        for (name, site), factor in zip(sublayer_sites(layer).items(), factors, strict=True)
    }
    return LayerWrites(writes, rest)


def _write(raw: Site | None, added: Site, factor: float) -> Write:
    assert raw is not None
    norm = None if added.module is raw.module else added.module
    return Write(norm, added.factor, factor)


def _fit(
    total: Float[Tensor, "1 position hidden"], written: Sequence[Tensor], others: Sequence[ModuleCall], size: float
) -> tuple[list[float], bool] | None:
    """The factors with which the writes add up to the total, and whether they need one other module's output too."""
    if float((total - sum(written, torch.zeros_like(total))).abs().max()) <= size:
        return [1.0] * len(written), False
    if (factors := _solve(total, written, size)) is not None:
        return factors, False
    for call in reversed(others):
        output = first_state(call.output)[1]
        if output is None or output.numel() != total.numel():
            continue
        output = output.double().view_as(total)  # OPT's MLP works on all positions in one dimension
        if float((total - sum(written, output)).abs().max()) <= size:
            return [1.0] * len(written), True
        if (factors := _solve(total, [*written, output], size)) is not None:
            return factors[:-1], True
    return None


def _solve(total: Tensor, written: Sequence[Tensor], size: float) -> list[float] | None:
    if not written:
        return None
    columns = torch.stack([part.flatten() for part in written], 1)
    factors = torch.linalg.lstsq(columns, total.flatten()[:, None]).solution
    missing = (columns @ factors)[:, 0] - total.flatten()
    return factors[:, 0].tolist() if float(missing.abs().max()) <= size else None
