"""Handles: the names of loaded models."""

from __future__ import annotations

import re

_LONGEST_NAME = 60
"""Characters of a handle, but for the number that may follow."""


def handle_of(model: str) -> str:
    """A handle for a model: the last part of its name or path, reduced to letters, digits, `.`, `_` and `-`."""
    name = model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", name[:_LONGEST_NAME])
    return base.removesuffix(".gguf").strip("-.").lower() or "model"
