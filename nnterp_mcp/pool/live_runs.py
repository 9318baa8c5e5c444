"""The runs of this server, which are independent of the calls that started them."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import TaskGroup

from nnterp_mcp.contract import Late, Params, ToolSpec
from nnterp_mcp.errors import Cancelled, InvalidRequest, NnterpError, Unsupported
from nnterp_mcp.pool.entry import Entry
from nnterp_mcp.pool.faults import masked
from nnterp_mcp.pool.followers import Followers, OnProgress
from nnterp_mcp.pool.messages import Progress, Recorded
from nnterp_mcp.pool.pool import Pool
from nnterp_mcp.pool.process import Stop
from nnterp_mcp.pool.queue import GiveWay
from nnterp_mcp.request.operations import Operation, describe
from nnterp_mcp.runs.records import Owner, RunError, RunRecord
from nnterp_mcp.runs.results import read_tables, stored_answer
from nnterp_mcp.runs.store import Quota, RunStore, now

logger = logging.getLogger(__name__)

_OF_THE_ANSWER = {"plot"}
"""Parameters that change the answer but nothing that is computed: they are not recorded."""

_OTHERS = ("base", "other")
"""Parameters that are the handles of other models."""

_SWEEP_EVERY = 50
"""Runs between two looks at the quota."""


@dataclass(eq=False)
class LiveRun:
    """A run that this server started.

    Attributes:
        record: Its record at the start.
        progress: The latest progress.
        answer: The answer for the agent, once it is done.
        error: The reason why it did not finish.
        ended: Set when it has ended.
        stop: Ends it.
        scope: The cancel scope of its wait for the model.
        queued: Seconds of waiting for the model.
        computed: Seconds of computation.
    """

    record: RunRecord
    progress: Progress | None = None
    answer: dict[str, Any] | None = None
    error: NnterpError | None = None
    ended: anyio.Event = field(default_factory=anyio.Event)
    stop: Stop = field(default_factory=Stop)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    queued: float = 0.0
    computed: float = 0.0
    _begun: float = field(default_factory=anyio.current_time)
    _turn: float | None = None
    _followers: Followers = field(default_factory=Followers)

    @property
    def id(self) -> str:
        """The run's id."""
        return self.record.id

    @property
    def waits(self) -> bool:
        """True while it waits for the model."""
        return self._turn is None and not self.ended.is_set()

    def tell(self, progress: Progress) -> None:
        """Sends progress to every follower."""
        self.progress = progress
        self._followers.send(progress)

    def place(self, ahead: int) -> None:
        """Sends the place in the queue as progress."""
        calls = "1 call comes" if ahead == 1 else f"{ahead} calls come"
        self.tell(Progress(id=0, done=0, message=f"waiting for {self.record.model}: {calls} first"))

    def begin(self) -> float:
        """Marks the start of the computation; returns the seconds of waiting."""
        self._turn = anyio.current_time()
        self.queued = self._turn - self._begun
        return self.queued

    def cancel(self, error: NnterpError) -> None:
        """Asks the run to end: at once while it waits, before its next batch while it computes."""
        self.stop.now(error)
        if self.waits:
            self.scope.cancel()

    def finish(self, answer: dict[str, Any] | None, error: NnterpError | None) -> None:
        """Marks the end of the run."""
        end = anyio.current_time()
        if self._turn is None:
            self.queued = end - self._begun
        else:
            self.computed = end - self._turn
        self.answer, self.error = answer, error
        self.ended.set()
        self._followers.close()

    async def follow(self, on_progress: OnProgress) -> None:
        """Passes progress on until the run is over."""
        if not self.ended.is_set():
            await self._followers.follow(on_progress)


def late(run: LiveRun) -> Late:
    """The answer about a run that has not ended."""
    state = "queued" if run.waits else "running"
    said = run.progress.message if run.progress else ""
    return Late(
        finding=f"{run.record.tool} on {run.record.model} is {state}{f' ({said})' if said else ''}.",
        notes=["read_run with this run_id waits for the answer; cancel_run ends it."],
        run_id=run.id,
        state=state,
        progress=said or None,
    )


def _edited(spec: ToolSpec[Any, Any, Any], params: Params, entry: Entry) -> Params:
    """A call's parameters with the model's edits before its own interventions, so that both are recorded."""
    if not entry.edits:
        return params
    own: tuple[Operation, ...] | None = getattr(params, "interventions", None)
    reason = f"{spec.name} takes no interventions"
    if own is not None:
        edited = params.model_copy(update={"interventions": (*entry.edits, *own)})
        try:
            spec.parse(edited.model_dump(mode="json"))
            return edited
        except InvalidRequest as error:
            reason = error.message.removesuffix(".")
    raise Unsupported(
        f"{reason}, and {entry.handle} has active edits: "
        + "; ".join(describe(operation) for operation in entry.edits[:3]),
        "Clear them with edit_model (interventions: []) first.",
    )


class Runs:
    """Starts runs and tracks those in progress.

    Args:
        pool: The models.
        tasks: The task group of the runs, which outlast the calls that started them.
    """

    def __init__(self, pool: Pool, tasks: TaskGroup) -> None:
        settings = pool.settings
        self.store = RunStore(settings.runs)
        self._quota = Quota(settings.max_runs_bytes, settings.max_runs_days)
        self._pool = pool
        self._tasks = tasks
        self._live: dict[str, LiveRun] = {}
        self._count = 0

    @property
    def live(self) -> list[LiveRun]:
        """The runs in progress, in the order in which they started."""
        return list(self._live.values())

    def find(self, run_id: str) -> LiveRun | None:
        """A run in progress, None if this server has none of that id."""
        return self._live.get(run_id)

    async def start(self, spec: ToolSpec[Any, Any, Any], params: Params, client: Hashable) -> LiveRun:
        """Records a run and starts it.

        Args:
            spec: The tool.
            params: The call's parameters.
            client: The caller; clients take turns.

        Raises:
            NoModel: No model is loaded, or several are and none was named.
            StaleHandle: The handle's model was unloaded.
            Unsupported: The model is edited, and the tool takes no interventions, or not for what is asked.
            LimitExceeded: The run cannot be recorded.
        """
        entry = self._pool.find(getattr(params, "model", None))
        params, others = self._with_others(params, entry)
        data = _edited(spec, params, entry).model_dump(mode="json", exclude=_OF_THE_ANSWER)

        def describe(run_id: str) -> RunRecord:
            return RunRecord(
                id=run_id,
                tool=spec.name,
                model=entry.handle,
                request=entry.request,
                others=others,
                params=data,
                seed=data.get("seed"),
                opened=now(),
                owner=Owner.this(),
            )

        record = await anyio.to_thread.run_sync(self.store.open, spec.name, describe)
        run = LiveRun(record)
        self._live[run.id] = run
        self._tasks.start_soon(self._execute, run, spec, entry, client)
        return run

    def _with_others(self, params: Params, entry: Entry) -> tuple[Params, dict[str, dict[str, Any]]]:
        """Names the models that a call compares with by their handles, and gives the parameters of their loads.

        Raises:
            NoModel: No model has the handle.
            Unsupported: That model is edited, or served.
        """
        given = {field: getattr(params, field, None) for field in _OTHERS}
        named = {field: self._comparable(name, entry) for field, name in given.items() if name is not None}
        handles = {field: other.handle for field, other in named.items()}
        return params.model_copy(update=handles), {other.handle: other.resolved for other in named.values()}

    def _comparable(self, name: str, entry: Entry) -> Entry:
        other = self._pool.find(name)
        if other.edits:
            raise Unsupported(
                f"{other.handle} has active edits", "Clear them with edit_model (interventions: []) first."
            )
        if "ndif" in (other.request.get("backend"), entry.request.get("backend")):
            raise Unsupported("a served model is not compared: its weights and activations are not here")
        return other

    async def cancel(self, run_id: str) -> RunRecord:
        """Ends a run before its next batch, waits until it has ended, and returns its record.

        Raises:
            InvalidRequest: There is no such run.
        """
        run = self._live.get(run_id)
        if run is not None:
            run.cancel(Cancelled(f"{run_id} was cancelled"))
            await run.ended.wait()
        return await anyio.to_thread.run_sync(self.store.read, run_id)

    async def settle(self) -> None:
        """Waits until every run has ended, after their workers were told to."""
        for run in self.live:
            await run.ended.wait()

    async def wind_down(self, within: float) -> None:
        """Ends every run before its next batch, so that it keeps what it has.

        Args:
            within: Seconds to wait for that; the end of its worker ends a run that needs longer.
        """
        for run in self.live:
            run.cancel(Cancelled("the server ended"))
        with anyio.move_on_after(within):
            await self.settle()

    async def sweep(self) -> None:
        """Deletes old runs to satisfy the quota."""
        try:
            deleted = await anyio.to_thread.run_sync(self.store.sweep, self._quota)
        except Exception as error:  # a store that cannot be tidied still takes runs, or says why not
            logger.warning("no room could be made for runs: %s", error)
            return
        if deleted:
            logger.info("deleted %d old runs to make room", len(deleted))

    async def _execute(self, run: LiveRun, spec: ToolSpec[Any, Any, Any], entry: Entry, client: Hashable) -> None:
        """Runs a call to its end and completes its record, even when the server is shutting down."""
        answer: dict[str, Any] | None = None
        error: NnterpError | None = Cancelled("the server ended")
        try:
            answer, error = await self._attempt(run, entry, client)
        finally:
            with anyio.CancelScope(shield=True):
                if error is not None:
                    answer = await anyio.to_thread.run_sync(self._close, run.id, spec, error)
                del self._live[run.id]
                run.finish(answer, None if answer is not None else error)
        self._count += 1
        if self._count % _SWEEP_EVERY == 0:
            await self.sweep()

    async def _attempt(
        self, run: LiveRun, entry: Entry, client: Hashable
    ) -> tuple[dict[str, Any], None] | tuple[None, NnterpError]:
        """Runs the call in its turn; returns the answer, or the error that ended it."""
        try:
            with run.scope:
                async with entry.turns.take(client, run.place) as give_way:
                    # A service runs one request of a connection at a time, and tells its progress to the latest.
                    served = entry.request.get("backend") == "ndif"
                    return await self._compute(run, entry, None if served else give_way), None
            return None, run.stop.error or Cancelled(f"{run.id} was cancelled")
        except NnterpError as error:
            return None, error
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # it costs this run, and not the server
            return None, masked(error, run.id)

    async def _compute(self, run: LiveRun, entry: Entry, give_way: GiveWay | None) -> dict[str, Any]:
        worker = entry.worker
        assert worker is not None

        async def on_progress(progress: Progress) -> None:
            run.tell(progress)

        recorded = Recorded(run=run.id, queued=run.begin(), others=run.record.others)
        params = run.record.params
        return await worker.call(run.record.tool, params, on_progress, recorded, run.stop, None, give_way, entry.within)

    def _close(self, run_id: str, spec: ToolSpec[Any, Any, Any], error: NnterpError) -> dict[str, Any] | None:
        """Completes the record of a run whose worker could not.

        Returns:
            The answer of a run that had finished before the error: a worker can be lost between its last write to the
            record and its reply.
        """
        try:
            record = self.store.read(run_id)
            if record.state == "done":
                found = stored_answer(read_tables(self.store, record, {spec.name: spec}), spec)
                return None if found is None else found.model_dump(mode="json")
            if record.state in ("running", "interrupted"):
                state = "cancelled" if isinstance(error, Cancelled) else "failed"
                ended = {"state": state, "error": RunError.of(error), "ended": now()}
                record = record.model_copy(update=ended)
            self.store.write(record)  # a worker does not know the token, which its error may quote
        except Exception as problem:  # whatever it is, the run ends
            logger.warning("the end of %s could not be recorded: %s", run_id, problem)
        return None
