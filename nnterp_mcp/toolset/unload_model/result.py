"""Result and answer of `unload_model`."""

from __future__ import annotations

from nnterp_mcp.contract import Answer, Result


class UnloadModelResult(Result):
    """The model that was unloaded; memory in bytes. `base` is the model whose process it shared, and which stays."""

    handle: str
    memory: int | None
    remaining: list[str]
    base: str | None = None


class UnloadModelAnswer(Answer):
    """The same as an agent sees it."""

    remaining: list[str]

    def body(self) -> list[str]:
        """The models that are left."""
        return ["still loaded: " + (", ".join(self.remaining) or "nothing")]
