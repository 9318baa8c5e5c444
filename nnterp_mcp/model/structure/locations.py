"""Names a place in a trace as someone would write it: `layers[2].output`, `layers_output[2]`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nnterp_mcp.model.structure.anatomy import Anatomy, LayerAnatomy, Site
from nnterp_mcp.model.structure.attention_taps import QUANTITIES, location


def explain_order(anatomy: Anatomy, message: str) -> str | None:
    """nnsight's complaint about the order of a trace under the standard names; None where it names no place.

    Args:
        message: nnsight's sentence, which names a place such as `model.model.layers.2.output.i0`.
    """
    found = re.match(r"'model\.(.+)\.i\w+' was requested but the model already ran past it$", message)
    if found is None:
        return None
    path = found[1]
    written = _module_path(anatomy, path)
    accessors = [name for name, place in _accessors(anatomy) if place == path]
    place = f"{accessors[0]} ({written})" if accessors and not path.endswith(QUANTITIES) else [*accessors, written][0]
    return (
        f"{place} was requested, but the model already ran past it or never ran it: "
        "in one trace, request values in the order in which the model computes them."
    )


def _module_path(anatomy: Anatomy, path: str) -> str:
    """The path with its beginning, up to the innermost module that has a standard name, under that name."""
    inside = [(site.path, name) for name, site in _modules(anatomy) if path.startswith(f"{site.path}.")]
    start, name = max(inside, key=lambda one: len(one[0]), default=("", ""))
    return f"{name}{path.removeprefix(start)}" if start else path


def _modules(anatomy: Anatomy) -> Iterator[tuple[str, Site]]:
    outer = {"embed_tokens": anatomy.embed_tokens, "ln_final": anatomy.ln_final, "lm_head": anatomy.lm_head}
    yield from ((name, site) for name, site in outer.items() if site is not None)
    for layer in anatomy.layers:
        name = f"layers[{layer.index}]"
        inner = {name: layer.block, f"{name}.self_attn": layer.attention, f"{name}.mlp": layer.mlp}
        yield from ((name, site) for name, site in inner.items() if site is not None)


def _accessors(anatomy: Anatomy) -> Iterator[tuple[str, str]]:
    """The accessors, each with the place that it reads; the plainer first where several read one place."""
    yield "token_embeddings", f"{anatomy.embed_tokens.path}.output"
    if anatomy.lm_head is not None:
        yield "logits", f"{anatomy.lm_head.path}.output"
    for layer in anatomy.layers:
        yield from ((f"{name}[{layer.index}]", place) for name, place in _of_layer(layer))


def _of_layer(layer: LayerAnatomy) -> Iterator[tuple[str, str]]:
    sides = (
        ("layers_input", layer.block, "input"),
        ("layers_output", layer.block, "output"),
        ("attentions_input", layer.attention, "input"),
        ("attentions_output", layer.attention_raw, "output"),
        ("attentions_contribution", layer.attention_contribution, "output"),
        ("heads_output", layer.output_projection, "input"),
        ("mlps_input", layer.mlp, "input"),
        ("neurons", layer.mlp_projection, "input"),
        ("mlps_output", layer.mlp_raw, "output"),
        ("mlps_contribution", layer.mlp_contribution, "output"),
    )
    yield from ((name, f"{site.path}.{side}") for name, site, side in sides if site is not None)
    if layer.core is not None:
        yield from ((quantity, location(layer.core.path, quantity)) for quantity in QUANTITIES)
