"""The loaded models by handle, one worker process each."""

from __future__ import annotations

import math
import time
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any

import anyio
from anyio.abc import TaskGroup

from nnterp_mcp.errors import (
    Cancelled,
    NnterpError,
    NoModel,
    StaleHandle,
    TimedOut,
    UnknownModel,
)
from nnterp_mcp.pool.entry import Entry
from nnterp_mcp.pool.faults import masked
from nnterp_mcp.pool.followers import OnProgress
from nnterp_mcp.pool.handles import handle_of, handle_of_adapter
from nnterp_mcp.pool.process import WorkerProcess
from nnterp_mcp.pool.queue import Turns
from nnterp_mcp.pool.room import replaced_by_scaled, require_room_for_adapter, require_room_for_model
from nnterp_mcp.request.adapter_folder import split_scale, with_scale
from nnterp_mcp.settings import Settings


class Pool:
    """Loads models into workers of their own and hands calls to them. Use as an async context manager.

    Attributes:
        settings: The server's settings.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._entries: dict[str, Entry] = {}
        self._gone: dict[str, str] = {}
        self._loaded: dict[str, dict[str, Any]] = {}
        self._tasks: TaskGroup
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Pool:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        await self.close()
        self._tasks.cancel_scope.cancel()
        return await self._stack.__aexit__(kind, error, trace)

    async def close(self) -> None:
        """Ends every worker."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as closing:
                for entry in list(self._entries.values()):
                    closing.start_soon(self._close, entry, "the server ended")

    @property
    def entries(self) -> list[Entry]:
        """Every model, loaded or loading, in the order in which the loads began."""
        return list(self._entries.values())

    @property
    def gone(self) -> dict[str, str]:
        """Handles of models that are gone, with the reason."""
        return dict(self._gone)

    async def load(self, request: dict[str, Any], on_progress: OnProgress) -> tuple[dict[str, Any] | None, bool]:
        """Loads a model, joins a load of the same request in progress, or finds the model loaded.

        Returns:
            The load's result, None if it takes longer than `reply_within`; and True if the request was known already.

        Raises:
            LimitExceeded: The pool is full.
            Cancelled: Someone unloaded the model while it was loading.
            NnterpError: What the load raised.
        """
        entry = self._of_request(request)
        known = entry is not None
        if entry is None and request.get("adapter") is not None:
            base = self._of_request(request | {"adapter": None})
            if base is None or not base.loaded.is_set():
                card, _ = await self.load(request | {"adapter": None}, on_progress)
                if card is None:
                    return None, False
            entry = self._share(self._of_request(request | {"adapter": None}), request)
        elif entry is None:
            entry = self._admit(request)
        if not entry.loaded.is_set():
            await self._follow(entry, on_progress)
        if entry.error is not None:
            raise entry.error
        return entry.card, known

    async def call(
        self, handle: str | None, tool: str, params: dict[str, Any], on_progress: OnProgress, waits: bool = True
    ) -> dict[str, Any]:
        """Runs a tool on a model without a record, and returns the data of its result.

        Args:
            handle: The model.
            tool: The tool's name.
            params: Its parameters.
            on_progress: Called with the call's progress.
            waits: Wait for the model's turn; a tool that runs no pass need not.

        Raises:
            NoModel: No model is loaded, or several are and none was named.
            StaleHandle: The handle's model was unloaded.
            NnterpError: What the tool raised.
        """
        entry = self.find(handle)
        assert entry.worker is not None
        if not waits:
            return await entry.worker.call(tool, params, on_progress, handle=entry.within)
        async with entry.turns.take(None, lambda ahead: None):
            return await entry.worker.call(tool, params, on_progress, handle=entry.within)

    async def unload(self, handle: str | None) -> Entry:
        """Ends a model's process, whatever it is doing, and waits until it is gone.

        Raises:
            NoModel: No model is loaded, or several are and none was named.
            StaleHandle: The handle's model was unloaded before.
        """
        entry = self.find(handle, loading=True)
        if entry.base is None:
            await self._close(entry, "it was unloaded")
            return entry
        async with entry.turns.take(None, lambda ahead: None):
            for at in [at for at in self._entries if at == entry.handle or at.startswith(f"{entry.handle}@")]:
                self._forget(self._entries[at], "it was unloaded")
            await self._drop(entry, entry.handle)
        return entry

    async def _drop(self, entry: Entry, handle: str) -> None:
        """Has a worker forget a model that shares its weights, or that it has read to compare with."""
        assert entry.worker is not None
        await entry.worker.call("unload_model", {"model": None}, entry.publish, handle=handle)

    async def _drop_in_turn(self, entry: Entry, handle: str) -> None:
        """The same after the calls that wait; a worker that ends before that has nothing left to forget."""
        with suppress(NnterpError):
            async with entry.turns.take(None, lambda ahead: None):
                await self._drop(entry, handle)

    def loaded_as(self, handle: str) -> dict[str, Any] | None:
        """The parameters with which the model of a handle was loaded; None where no model has the handle."""
        entry = self._entries.get(handle)
        return None if entry is None else dict(entry.request)

    def _of_request(self, request: dict[str, Any]) -> Entry | None:
        return next((entry for entry in self._entries.values() if entry.request == request), None)

    def _share(self, base: Entry | None, request: dict[str, Any]) -> Entry:
        """Begins to load an adapter in the worker of its base.

        Raises:
            StaleHandle: The base was unloaded in the meantime.
            LimitExceeded: The pool is full.
        """
        if base is None or base.worker is None:
            raise StaleHandle(
                f"{request['model']} was unloaded before its adapter was loaded", "Call load_model again."
            )
        require_room_for_adapter(self.entries)
        folder, scale = split_scale(request["adapter"])
        entry = self._enter(with_scale(f"{base.handle}+{handle_of_adapter(folder)}", scale), request, base)
        self._tasks.start_soon(self._adapt, entry)
        return entry

    def _enter(self, name: str, request: dict[str, Any], base: Entry) -> Entry:
        """A new entry in the worker of another."""
        handle = self._free(name, request)
        entry = Entry(handle, str(request["model"]), request, base.turns, worker=base.worker, base=base)
        self._entries[handle] = entry
        self._gone.pop(handle, None)
        return entry

    async def _adapt(self, entry: Entry) -> None:
        """Loads an adapter; no exception leaves it, as `_run` says."""
        assert entry.worker is not None
        try:
            async with entry.turns.take(None, lambda ahead: None):
                entry.card = await entry.worker.call(
                    "load_model", entry.request, entry.publish, limit=math.inf, handle=entry.handle
                )
            self._loaded[entry.handle] = entry.request
        except NnterpError as error:
            entry.error = entry.error or error
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            entry.error = entry.error or masked(error)
        finally:
            if entry.card is None:
                self._entries.pop(entry.handle, None)
            self._finish_load(entry)

    def _forget(self, entry: Entry, reason: str) -> None:
        """Ends a handle and leaves its process running."""
        self._entries.pop(entry.handle, None)
        self._gone[entry.handle] = reason
        self._drop_copies(entry)

    def _drop_copies(self, entry: Entry) -> None:
        """Has workers that read the weights of a model to compare with drop them when it is gone."""
        for other in self._entries.values():
            if other.base is None and other.worker is not None and entry.handle in other.worker.held:
                self._tasks.start_soon(self._drop_in_turn, other, entry.handle)

    def _scaled(self, handle: str) -> Entry | None:
        """The entry of an adapted model at another scale, from its first use on; None where there is no such model."""
        if handle in self._entries or "@" not in handle:
            return self._entries.get(handle)
        name, scale = split_scale(handle)
        entry = self._entries.get(with_scale(name, scale))
        if entry is not None:
            return entry
        entry = self._entries.get(name)
        if entry is None or entry.base is None or entry.card is None:
            return None
        folder, own = split_scale(entry.request["adapter"])
        request = entry.request | {"adapter": with_scale(folder, own * scale)}
        found = self._of_request(request)
        if found is None:
            replaced = replaced_by_scaled(self.entries)
            if replaced is not None:
                del self._entries[replaced.handle]
                self._drop_copies(replaced)
                self._tasks.start_soon(self._drop_in_turn, replaced, replaced.handle)
            found = self._enter(with_scale(name, scale), request, entry.base)
            found.scaled, found.card = True, entry.card | {"handle": found.handle}
            self._finish_load(found)
        return found

    def find(self, handle: str | None, loading: bool = False) -> Entry:
        """The entry behind a handle, or the only one when no handle is given.

        Raises:
            NoModel: No model is loaded, or several are and none was named.
            StaleHandle: The handle's model is gone.
        """
        entry = self._scaled(handle) if handle is not None else self._only()
        if entry is None and handle is not None and handle not in self._gone:
            named = [entry for entry in self._entries.values() if entry.source == handle]
            entry = named[0] if len(named) == 1 else None
        if entry is None:
            assert handle is not None
            raise self._unknown(handle)
        if not loading and not entry.loaded.is_set():
            raise NoModel(f"{entry.handle} is still loading", "Wait for load_model to answer, then call again.")
        entry.used = time.monotonic()
        return entry

    def _only(self) -> Entry:
        if len(self._entries) == 1:
            return next(iter(self._entries.values()))
        if self._entries:
            names = ", ".join(self._entries)
            raise NoModel(f"{len(self._entries)} models are loaded: {names}", "Say which one in the argument 'model'.")
        last = next(reversed(self._gone.items()), None)
        lost = "" if last is None else f" ({last[0]} is gone: {last[1]})"
        raise NoModel(f"no model is loaded{lost}", 'Call load_model first, for instance {"model": "smollm2-135m"}.')

    def _unknown(self, handle: str) -> NnterpError:
        loaded = "loaded: " + ", ".join(self._entries) if self._entries else "no model is loaded"
        if handle in self._gone:
            return StaleHandle(f"{handle!r} is gone: {self._gone[handle]}; {loaded}", "Call load_model again.")
        return NoModel(f"no loaded model has the handle {handle!r}; {loaded}", "Call load_model to load it.")

    def _admit(self, request: dict[str, Any]) -> Entry:
        require_room_for_model(self.entries, self.settings.max_models)
        handle = self._free(handle_of(str(request["model"])), request)
        entry = Entry(handle, str(request["model"]), request, Turns(self.settings.max_queue, handle))
        self._entries[entry.handle] = entry
        self._gone.pop(entry.handle, None)
        self._tasks.start_soon(self._run, entry)
        return entry

    def _free(self, base: str, request: dict[str, Any]) -> str:
        """A free handle that was never used for another request."""
        handles = (base if count == 1 else f"{base}-{count}" for count in range(1, 1 << 30))
        free = (handle for handle in handles if handle not in self._entries)
        return next(handle for handle in free if self._loaded.get(handle, request) == request)

    async def _follow(self, entry: Entry, on_progress: OnProgress) -> None:
        try:
            with anyio.move_on_after(self.settings.reply_within):
                await entry.followers.follow(on_progress)
        except anyio.get_cancelled_exc_class():
            if not entry.followers and not entry.loaded.is_set():
                with anyio.CancelScope(shield=True):
                    await self._close(entry, "its load was cancelled")
            raise

    async def _run(self, entry: Entry) -> None:
        """Owns a worker: spawns it, loads the model, and waits until the process ends.

        No exception leaves it: all models share one task group, which would end with the first.
        """
        with entry.scope:
            try:
                entry.worker = await WorkerProcess.spawn(entry.handle, self.settings)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._load, entry, entry.worker)
                    await entry.worker.listen()
            except NnterpError as error:
                entry.error = entry.error or error
            except OSError as error:
                entry.error = UnknownModel(f"no worker process could be started: {error}")
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:
                entry.error = entry.error or masked(error)
            finally:
                self._settle(entry)

    async def _load(self, entry: Entry, worker: WorkerProcess) -> None:
        try:
            with anyio.fail_after(self.settings.load_timeout):
                entry.card = await worker.call("load_model", entry.request, entry.publish, limit=math.inf)
        except TimeoutError:
            limit = self.settings.load_timeout
            entry.error = TimedOut(f"{entry.handle} was not loaded within {limit:g} s and was given up")
        except NnterpError as error:
            entry.error = entry.error or error  # who ended the load has said why
        if entry.error is not None:
            await worker.stop("its load failed")
        else:
            self._loaded[entry.handle] = entry.request
            self._finish_load(entry)

    def _finish_load(self, entry: Entry) -> None:
        entry.loaded.set()
        entry.followers.close()

    def _settle(self, entry: Entry) -> None:
        """Cleans up after a model: its handle stops working, and waiting callers get the reason."""
        self._forget_sharing(entry)
        if self._entries.get(entry.handle) is entry:
            del self._entries[entry.handle]
            if entry.card is not None:
                assert entry.worker is not None
                self._drop_copies(entry)
                self._gone.setdefault(entry.handle, entry.worker.lost().message)
        if entry.card is None and entry.error is None:
            entry.error = (
                entry.worker.lost() if entry.worker else Cancelled(f"the load of {entry.handle} was cancelled")
            )
        self._finish_load(entry)

    def _forget_sharing(self, base: Entry) -> None:
        """Ends the handles of models that share the weights of one that is gone."""
        for entry in [entry for entry in self._entries.values() if entry.base is base]:
            self._forget(entry, f"its base {base.handle} is gone")

    async def _close(self, entry: Entry, reason: str) -> None:
        if entry.base is not None:  # its base's end is its own
            return
        self._forget_sharing(entry)
        self._forget(entry, reason)
        if entry.card is None and entry.error is None:
            entry.error = Cancelled(f"the load of {entry.handle} was ended: {reason}", "Call load_model again.")
        if entry.worker is None:
            entry.scope.cancel()
            await entry.loaded.wait()
        else:
            await entry.worker.stop(reason)
