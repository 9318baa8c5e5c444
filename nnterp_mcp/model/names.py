"""Binds the standard names onto nnsight's wrappers: `model.layers[3].self_attn`.

nnsight's own `rename=` works by name, and refuses a name that would hide another. Here the modules are known, so a
name is bound to its module wherever that is, and a layer without attention gets no `self_attn`.
"""

from __future__ import annotations

from typing import Any

from nnterp_mcp.model.anatomy import Anatomy, Site


def bind_names(root: Any, anatomy: Anatomy) -> None:
    """Give the modules of a wrapped model their standard names.

    Args:
        root: The model, as nnsight wraps it.
        anatomy: Its anatomy.
    """
    for alias, site in {
        "embed_tokens": anatomy.embed_tokens,
        "layers": anatomy.layers_module,
        "ln_final": anatomy.ln_final,
        "lm_head": anatomy.lm_head,
    }.items():
        _bind(root, root, alias, site)
    for layer in anatomy.layers:
        block = root.interleaver.envoys[id(layer.block.module)]
        _bind(root, block, "self_attn", layer.attention)
        _bind(root, block, "mlp", layer.mlp)


def _bind(root: Any, host: Any, alias: str, site: Site | None) -> None:
    target = None if site is None else root.interleaver.envoys[id(site.module)]
    if target is None or host.__dict__.get(alias) is target:
        return
    object.__setattr__(host, alias, target)
    host._aliases[alias] = target.path.removeprefix(f"{host.path}.")
