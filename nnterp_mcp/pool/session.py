"""The state of a server: its settings, models, runs, vectors and prompt sets."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import TracebackType

import anyio
from anyio.abc import TaskGroup

from nnterp_mcp.pool.live_runs import Runs
from nnterp_mcp.pool.pool import Pool
from nnterp_mcp.runs.dictionaries import DictionaryStore
from nnterp_mcp.runs.prompt_sets import PromptSetStore
from nnterp_mcp.runs.vectors import VectorStore
from nnterp_mcp.settings import Settings

_LAST_BATCH = 4.0
"""Seconds that runs get to end in: supervisors usually kill a server after 10."""


class Session:
    """The models and the runs of one server. Use as an async context manager.

    Attributes:
        settings: The server's settings.
        pool: The models.
        runs: The runs.
        vectors: The named vectors.
        prompt_sets: The named prompt sets.
        dictionaries: The loaded dictionaries of features.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pool = Pool(settings)
        self.runs: Runs
        self.vectors = VectorStore(settings.data / "vectors")
        self.prompt_sets = PromptSetStore(settings.data / "prompt_sets")
        self.dictionaries = DictionaryStore(settings.data / "dictionaries")
        self._tasks: TaskGroup
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Session:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        await self._stack.enter_async_context(self.pool)
        self.runs = Runs(self.pool, self._tasks)
        self._tasks.start_soon(self.runs.sweep)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        await self.close()
        self._tasks.cancel_scope.cancel()
        return await self._stack.__aexit__(kind, error, trace)

    async def close(self) -> None:
        """Ends every run and then every worker; each run's record has its partial result and its end."""
        with anyio.CancelScope(shield=True):
            await self.runs.wind_down(_LAST_BATCH)
            await self.pool.close()
            await self.runs.settle()
