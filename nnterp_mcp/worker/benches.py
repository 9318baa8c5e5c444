"""The models of one worker: its own, and those that share its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnterp_mcp.errors import StaleHandle
from nnterp_mcp.pool.messages import Call
from nnterp_mcp.request.adapter_folder import split_scale
from nnterp_mcp.worker.adapters import load_adapter
from nnterp_mcp.worker.workbench import Bench

if TYPE_CHECKING:
    from nnterp_mcp.model.loading.locations import Located


class Benches:
    """The benches of a worker, by handle.

    Attributes:
        own: That of the worker's own model.
        seconds: Models of other workers that were read into this one.
    """

    def __init__(self, own: Bench) -> None:
        self.own = own
        self.seconds = own.seconds
        self._sharing: dict[str, Bench] = {}
        own.find_relative = self._relative
        own.relatives = lambda: list(self._sharing)

    def has(self, handle: str) -> bool:
        """True if a model is there, and need not be made first."""
        return not handle or handle in self._sharing

    def find(self, call: Call) -> Bench:
        """The bench of a call: a new one for an adapter that is being loaded, or is used at another scale.

        Raises:
            StaleHandle: The adapter was unloaded.
            NnterpError: It cannot be loaded.
        """
        if not call.handle:
            return self.own
        found = self._sharing.get(call.handle)
        if found is not None:
            return found
        if call.tool == "unload_model":
            return self.own  # a second model has no bench, and one at another scale may not have been used yet
        return self._make(call.handle) if call.tool == "load_model" else self._rescale(call.handle)

    def _make(self, handle: str) -> Bench:
        return Bench(
            handle, self.own.settings, base=self.own, find_relative=self._relative, relatives=self.own.relatives
        )

    def _rescale(self, handle: str) -> Bench:
        made = self._make(handle)
        load_adapter(made, *self._at_scale(handle))
        self._sharing[handle] = made
        return made

    def _relative(self, handle: str) -> Bench | None:
        """The bench of a handle in this worker; None where another one has it."""
        if handle == self.own.handle or handle in self._sharing:
            return self._sharing.get(handle, self.own)
        name = handle.rpartition("@")[0]
        return self._rescale(handle) if name in self._sharing else None

    def settle(self, call: Call, bench: Bench) -> None:
        """Adds an adapter that was loaded; forgets one that was unloaded, at every scale, or a second model."""
        if call.handle and call.tool == "load_model":
            self._sharing[call.handle] = bench
        if call.tool == "unload_model":
            for name in [name for name in self._sharing if name == call.handle or name.startswith(f"{call.handle}@")]:
                del self._sharing[name]
            self.seconds.forget(call.handle)

    def _at_scale(self, handle: str) -> tuple[Located, float]:
        """The files of a loaded adapter, and its scale times that which a handle names."""
        from nnterp_mcp.model.loading.locations import Located

        name, scale = split_scale(handle)
        loaded = self._sharing.get(name)
        if loaded is None or loaded.adapter is None:
            raise StaleHandle(f"{name!r} is gone, and with it {handle!r}", "Call load_model again.")
        adapter = loaded.adapter
        return Located(adapter.folder, adapter.origin, revision=adapter.revision), adapter.scale * scale
