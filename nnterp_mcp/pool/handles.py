"""Handles: the names of loaded models."""

from __future__ import annotations

import re

from nnterp_mcp.request.adapter_folder import split_hub

_LONGEST_NAME = 60
"""Characters of a handle, but for the number that may follow."""


def handle_of(model: str) -> str:
    """A handle for a model: the last part of its name or path, reduced to letters, digits, `.`, `_` and `-`."""
    name = model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", name[:_LONGEST_NAME])
    return base.removesuffix(".gguf").strip("-.").lower() or "model"


def handle_of_adapter(source: str) -> str:
    """The part of a handle that names an adapter: its folder's name, or that of its repository without a revision."""
    hub = split_hub(source)
    return handle_of(source if hub is None else hub[0])
