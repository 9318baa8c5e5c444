"""Arguments of `unload_model`."""

from __future__ import annotations

from nnterp_mcp.contract import ModelParams


class UnloadModelParams(ModelParams):
    """Which model to let go."""
