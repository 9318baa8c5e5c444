"""Binds the standard names to nnsight's wrappers: `model.layers[3].self_attn`.

nnsight's own `rename=` works by name, and refuses a name that would hide another. Here the modules are known, so a
name is bound to its module wherever that is, and a layer without attention gets no `self_attn`.
"""

from __future__ import annotations

from typing import Any

from nnterp_mcp.model.structure.anatomy import Anatomy, Site


def bind_names(root: Any, anatomy: Anatomy) -> None:
    """Give the modules of a wrapped model their standard names.

    Args:
        root: The model, as nnsight wraps it.
    """
    inner = {"embed_tokens": anatomy.embed_tokens, "layers": anatomy.layers_module, "ln_final": anatomy.ln_final}
    for alias, site in {**inner, "lm_head": anatomy.lm_head}.items():
        _bind(root, root, alias, site)
    _bind_container(root, anatomy.layers_module, inner)
    for layer in anatomy.layers:
        block = root.interleaver.envoys[id(layer.block.module)]
        _bind(root, block, "self_attn", layer.attention)
        _bind(root, block, "mlp", layer.mlp)


def _bind_container(root: Any, layers: Site, inner: dict[str, Site | None]) -> None:
    """`model.model.layers`, as in nnterp: the child that holds the layers is called `model`, if no other is."""
    name = layers.path.partition(".")[0]
    holder = root._child_map.get(name)
    if holder is None or name == layers.path or root._child_map.get("model", holder) is not holder:
        return
    if root.__dict__.get("model") is not holder:
        object.__setattr__(root, "model", holder)
        root._aliases["model"] = name
    for alias, site in inner.items():
        if site is not None and site.path.startswith(f"{name}."):
            _bind(root, holder, alias, site)


def _bind(root: Any, host: Any, alias: str, site: Site | None) -> None:
    target = None if site is None else root.interleaver.envoys[id(site.module)]
    if target is None or host.__dict__.get(alias) is target:
        return
    object.__setattr__(host, alias, target)
    host._aliases[alias] = target.path.removeprefix(f"{host.path}.")
