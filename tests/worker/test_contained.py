"""What goes wrong with one model stays with it: the pool and the others go on, whatever the error's type."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from nnterp_mcp.errors import NnterpError
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.pool.pool import Pool
from nnterp_mcp.pool.process import WorkerProcess
from nnterp_mcp.settings import Settings


class Panic(BaseException):
    """What no handler of `Exception` catches."""


async def _ignore(progress: Progress) -> None:
    pass


async def _refused(load: Callable[[], Any]) -> NnterpError:
    with pytest.raises(NnterpError) as raised:
        await load()
    return raised.value


@pytest.mark.parametrize("error", [RuntimeError("x"), Panic("x"), BaseExceptionGroup("x", [Panic("y")])], ids=repr)
@pytest.mark.parametrize("part", ["spawn", "listen", "call"])
def test_an_error_of_one_model_leaves_the_pool(
    part: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        settings = Settings(data=tmp_path, load_timeout=0.1)
        whole = getattr(WorkerProcess, part)

        async def fail(*arguments: Any, **named: Any) -> Any:
            raise error

        async with Pool(settings) as pool:
            monkeypatch.setattr(WorkerProcess, part, fail)
            said = await _refused(lambda: pool.load({"model": "one"}, _ignore))
            monkeypatch.setattr(WorkerProcess, part, whole)
            assert said.code == "internal"
            assert pool.entries == []
            # The pool goes on: the next load gets a process, which is not done within a tenth of a second.
            assert (await _refused(lambda: pool.load({"model": "two"}, _ignore))).code == "timed_out"

    anyio.run(run)


def test_a_worker_that_is_stopped_while_it_loads_is_unloaded_within_a_ping(tmp_path: Path) -> None:
    """Its input is closed before it is killed, and a ping meanwhile finds it closed."""

    async def run() -> None:
        async with Pool(Settings(data=tmp_path, hang_timeout=4)) as pool:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: _refused(lambda: pool.load({"model": "smollm2-135m"}, _ignore)))
                while not pool.entries or pool.entries[0].worker is None:
                    await anyio.sleep(0.01)
                os.kill(pool.entries[0].worker.pid, signal.SIGSTOP)
                await pool.unload(None)
            assert pool.entries == []
            assert pool.gone == {"smollm2-135m": "it was unloaded"}

    anyio.run(run)
