"""Completions for the arguments of prompts and of resource addresses, by the argument's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio.to_thread
from mcp.server.context import ServerRequestContext
from mcp_types import CompleteRequestParams, CompleteResult, Completion

from nnterp_mcp.errors import NnterpError
from nnterp_mcp.pool.session import Session
from nnterp_mcp.runs.records import is_run_id
from nnterp_mcp.server.prompts import layers_of
from nnterp_mcp.server.recipe import DEFAULT_MODEL
from nnterp_mcp.toolset import specs

_MOST = 100
"""Values of one completion, as MCP allows; as many runs are looked through."""


class Completions:
    """Completes arguments from the session's models, vectors and runs.

    Args:
        session: The server's session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def complete(self, context: ServerRequestContext[Any], params: CompleteRequestParams) -> CompleteResult:
        """The suggestions that start with the typed text."""
        known = (params.context.arguments if params.context else None) or {}
        values = await anyio.to_thread.run_sync(self._suggest, params.argument.name, known)
        begun = [value for value in values if value.startswith(params.argument.value)]
        return CompleteResult(
            completion=Completion(values=begun[:_MOST], total=len(begun), has_more=len(begun) > _MOST)
        )

    def _suggest(self, argument: str, known: Mapping[str, str]) -> list[str]:
        match argument:
            case "model" | "model_a" | "model_b":
                chosen = {known.get("model_a"), known.get("model_b")} if argument != "model" else set[str | None]()
                return [name for name in dict.fromkeys([*self._handles(), DEFAULT_MODEL]) if name not in chosen]
            case "layers":
                return self._layers(known.get("model"))
            case "vector":
                return sorted({card.name for card in self._session.vectors.cards()})
            case "run_id":
                return [record.id for record in self._session.runs.store.latest(_MOST)]
            case "array":
                return self._arrays(known.get("run_id", ""))
            case "tool":
                return list(specs())
            case _:
                return []

    def _handles(self) -> list[str]:
        return [entry.handle for entry in self._session.pool.entries]

    def _layers(self, model: str | None) -> list[str]:
        try:
            handle = self._session.pool.find(model or None).handle
        except NnterpError:
            return ["all"]
        return ["all", *map(str, range(layers_of(self._session).get(handle, 0)))]

    def _arrays(self, run_id: str) -> list[str]:
        try:
            return sorted(self._session.runs.store.read(run_id).arrays) if is_run_id(run_id) else []
        except NnterpError:
            return []
