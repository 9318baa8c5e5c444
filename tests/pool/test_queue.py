"""The queue of a model, driven by every pattern of arrivals, ends and departures that hypothesis thinks of."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import hypothesis.strategies as st
import pytest
from anyio.abc import TaskGroup
from hypothesis import given

from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.pool.queue import Turns

CLIENTS = "abc"
Step = tuple[str, str, int]
"""What happens next: a client arrives, whoever has the turn ends, or one that waits leaves."""

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from(CLIENTS), st.just(0)),
        st.tuples(st.just("end"), st.just(""), st.just(0)),
        st.tuples(st.just("leave"), st.just(""), st.integers(0, 20)),
    ),
    max_size=40,
)


async def settle() -> None:
    """Lets every task run until it waits; quicker than anyio's own way of it, which sleeps."""
    for _ in range(8):
        await anyio.lowlevel.checkpoint()


@dataclass(eq=False)
class Caller:
    """One call: what it was told, and what happened to it."""

    client: str
    places: list[int] = field(default_factory=list)
    has_turn: bool = False
    over: bool = False
    end: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Office:
    """A queue with callers, watched from outside."""

    def __init__(self, tasks: TaskGroup, limit: int = 100) -> None:
        self.turns = Turns(limit, "tiny")
        self.callers: list[Caller] = []
        self.served: list[Caller] = []
        self._tasks = tasks

    @property
    def waiting(self) -> list[Caller]:
        return [caller for caller in self.callers if not caller.has_turn and not caller.over]

    @property
    def current(self) -> Caller | None:
        (*none, current) = [None, *(caller for caller in self.callers if caller.has_turn and not caller.over)]
        assert len(none) <= 1, "two calls have the model"
        return current

    async def arrive(self, client: str) -> Caller:
        caller = Caller(client)
        self.callers.append(caller)
        self._tasks.start_soon(self._call, caller)
        await settle()
        return caller

    async def end(self) -> None:
        if self.current is not None:
            self.current.end.set()
            await settle()

    async def leave(self, which: int) -> None:
        if self.waiting:
            self.waiting[which % len(self.waiting)].scope.cancel()
            await settle()

    async def take(self, step: Step) -> None:
        kind, client, which = step
        await {"arrive": lambda: self.arrive(client), "end": self.end, "leave": lambda: self.leave(which)}[kind]()

    async def _call(self, caller: Caller) -> None:
        with caller.scope:
            async with self.turns.take(caller.client, caller.places.append):
                caller.has_turn = True
                self.served.append(caller)
                await caller.end.wait()
        caller.over = True


@asynccontextmanager
async def office(limit: int = 100) -> AsyncGenerator[Office]:
    async with anyio.create_task_group() as tasks:
        yield Office(tasks, limit)
        tasks.cancel_scope.cancel()


@given(STEPS)
def test_nobody_is_lost_and_the_model_is_never_idle_while_someone_waits(steps: list[Step]) -> None:
    async def play() -> None:
        async with office() as queue:
            for step in steps:
                await queue.take(step)
                assert len(queue.turns) == len(queue.waiting)
                assert queue.current is not None or not queue.waiting
            while queue.current is not None:
                await queue.end()
            assert all(caller.over for caller in queue.callers)
            left = [caller for caller in queue.callers if caller.scope.cancel_called]
            assert set(queue.served) | set(left) == set(queue.callers)
            assert len(queue.turns) == 0

    anyio.run(play)


@given(STEPS)
def test_of_two_that_wait_none_gets_two_turns_before_the_other_gets_one(steps: list[Step]) -> None:
    async def play() -> None:
        async with office() as queue:
            waited: dict[str, list[str]] = {}
            """What was served since each client began to wait."""
            for step in [*steps, *[("end", "", 0)] * len(steps)]:
                count = len(queue.served)
                await queue.take(step)
                waits = {caller.client for caller in queue.waiting}
                for served in queue.served[count:]:
                    for client, turns in waited.items():
                        if client != served.client:
                            turns.append(served.client)
                            assert turns.count(served.client) <= 1, f"{served.client} passed {client} twice: {turns}"
                    waited.pop(served.client, None)
                waited = {client: waited.get(client, []) for client in waits}

    anyio.run(play)


@given(STEPS)
def test_the_calls_of_one_client_keep_their_order(steps: list[Step]) -> None:
    async def play() -> None:
        async with office() as queue:
            for step in steps:
                await queue.take(step)
            for client in CLIENTS:
                served = [caller for caller in queue.served if caller.client == client]
                assert served == [caller for caller in queue.callers if caller in served]

    anyio.run(play)


@given(STEPS)
def test_the_place_told_is_how_many_turns_come_first(steps: list[Step]) -> None:
    async def play() -> None:
        async with office() as queue:
            for step in steps:
                await queue.take(step)
            told = {caller: caller.places[-1] for caller in queue.waiting}
            assert sorted(told.values()) == list(range(1, len(told) + 1))
            for turn in range(1, len(told) + 1):
                await queue.end()
                assert queue.current is not None
                assert told[queue.current] == turn

    anyio.run(play)


@pytest.mark.parametrize(
    ("arrivals", "order"),
    [
        ("aaaab", "aabaa"),
        ("aabbcc", "aabcbc"),
        ("abcabc", "abcabc"),
        ("aaabcc", "aabcac"),
    ],
)
def test_clients_take_turns(arrivals: str, order: Sequence[str]) -> None:
    async def play() -> None:
        async with office() as queue:
            for client in arrivals:
                await queue.arrive(client)
            for _ in arrivals:
                await queue.end()
            assert "".join(caller.client for caller in queue.served) == order

    anyio.run(play)


def test_a_place_is_told_when_it_changes_and_only_then() -> None:
    async def play() -> None:
        async with office() as queue:
            first, second, third = [await queue.arrive("a") for _ in range(3)]
            other = await queue.arrive("b")
            await queue.end()
            third.scope.cancel()
            await settle()

            assert (first.places, second.places, third.places, other.places) == ([], [1], [2, 3, 2], [2, 1])

    anyio.run(play)


def test_one_call_too_many_is_refused_and_leaves_no_trace() -> None:
    async def play() -> None:
        async with office(limit=2) as queue:
            waiting = [await queue.arrive(client) for client in "aab"]
            with pytest.raises(LimitExceeded) as refused:
                async with queue.turns.take("c", lambda place: None):
                    raise AssertionError("it had a turn")
            assert refused.value.message == "2 calls wait for tiny, and this server allows no more"
            assert "cancel_run" in refused.value.next_step
            assert len(queue.turns) == 2

            waiting[-1].scope.cancel()
            await settle()
            late = await queue.arrive("c")
            await queue.end()
            await queue.end()
            assert late.has_turn

    anyio.run(play)


def test_a_turn_that_is_given_to_one_who_leaves_at_that_moment_goes_to_the_next() -> None:
    async def play() -> None:
        async with office() as queue:
            async with queue.turns.take("a", lambda place: None):
                second, third = [await queue.arrive(client) for client in "bc"]
            second.scope.cancel()
            await settle()

            assert second.over
            assert queue.current is third

    anyio.run(play)


def test_a_turn_that_is_given_up_goes_to_the_next() -> None:
    async def play() -> None:
        async with office() as queue:
            first, second = [await queue.arrive(client) for client in "ab"]
            first.scope.cancel()
            await settle()

            assert queue.current is second

    anyio.run(play)


def test_a_call_that_raises_gives_its_turn_up() -> None:
    async def play() -> None:
        async with office() as queue:
            with pytest.raises(ValueError, match="computed nothing"):
                async with queue.turns.take("a", lambda place: None):
                    raise ValueError("computed nothing")
            assert (await queue.arrive("b")).has_turn

    anyio.run(play)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_call_that_gives_way_continues_after_those_that_wait(leaves: bool) -> None:
    order: list[str] = []
    places: list[int] = []

    async def play() -> None:
        turns, begun, gone = Turns(100, "tiny"), anyio.Event(), anyio.CancelScope()

        async def long() -> None:
            with gone:
                async with turns.take("long", places.append) as give_way:
                    await give_way()
                    order.append("alone, it keeps its turn")
                    begun.set()
                    await settle()
                    for part in range(2):
                        await give_way()
                        order.append(f"long {part}")

        async def short(client: str, name: str) -> None:
            async with turns.take(client, lambda ahead: None):
                order.append(name)
                if leaves:
                    gone.cancel()
                await settle()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(long)
            await begun.wait()
            for client, name in (("a", "a1"), ("b", "b1"), ("a", "a2"), ("long", "own")):
                tasks.start_soon(short, client, name)
        assert len(turns) == 0
        async with turns.take("later", places.append):
            order.append("later")

    anyio.run(play)
    long = [] if leaves else ["long 0", "long 1"]
    assert [name for name in order if not name.startswith("long")] == [
        "alone, it keeps its turn", "a1", "b1", "own", "a2", "later",
    ]  # fmt: skip
    assert [name for name in order if name.startswith("long")] == long
    assert places == []
