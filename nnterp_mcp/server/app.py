"""The MCP server: one generic path for every tool. Tools come from `toolset/`; nothing here knows any of them."""

from __future__ import annotations

import importlib
import logging
import time
from typing import Any

import anyio
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    Tool,
    ToolAnnotations,
)

from nnterp_mcp import __version__
from nnterp_mcp.contract import Params, Result, ToolSpec
from nnterp_mcp.errors import NnterpError
from nnterp_mcp.server import replies
from nnterp_mcp.session.pool import Pool
from nnterp_mcp.session.process import OnProgress
from nnterp_mcp.session.wire import Progress
from nnterp_mcp.toolset import specs

logger = logging.getLogger(__name__)

INSTRUCTIONS = """\
A laboratory for looking inside open-weight language models.
1. load_model loads a model once into a process of its own, where it stays warm ("smollm2-135m" is built in).
2. tokenize shows how a prompt splits into positions. logit_lens shows what each layer would predict, and from \
which layer on the answer leads.
3. session says what is loaded; unload_model frees its memory.
While one model is loaded, `model` can be left out. Layers and positions count from 0; negative ones from the end.
Probabilities run from 0 to 1; entropies and KL divergences are in nats. Errors say what to change."""


def build(pool: Pool) -> Server[Any]:
    """A server whose calls run in the pool's workers."""

    async def list_tools(context: ServerRequestContext[Any], params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[definition(spec) for spec in specs().values()])

    async def call_tool(context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        spec = specs().get(params.name)
        if spec is None:
            raise MCPError(INVALID_PARAMS, f"Unknown tool: {params.name}. Tools: {', '.join(specs())}")

        async def on_progress(progress: Progress) -> None:
            await context.session.report_progress(progress.done, progress.total, progress.message)

        return await _call(pool, spec, params.arguments or {}, on_progress)

    return Server(
        "nnterp-mcp",
        version=__version__,
        title="nnterp: a laboratory inside language models",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def definition(spec: ToolSpec[Any, Any, Any]) -> Tool:
    """A tool as `tools/list` shows it."""
    return Tool(
        name=spec.name,
        title=spec.title,
        description=spec.description,
        input_schema=spec.input_schema(),
        output_schema=spec.output_schema(),
        annotations=ToolAnnotations(
            title=spec.title,
            read_only_hint=spec.read_only,
            destructive_hint=spec.destructive,
            idempotent_hint=spec.idempotent,
            open_world_hint=spec.open_world,
        ),
    )


async def _call(
    pool: Pool, spec: ToolSpec[Any, Any, Any], arguments: dict[str, Any], on_progress: OnProgress
) -> CallToolResult:
    begun = time.monotonic()
    code = "ok"
    try:
        result = await _run(pool, spec, spec.parse(arguments), on_progress)
        return replies.answered(spec, result)
    except NnterpError as error:
        code = error.code
        return replies.refused(error)
    except anyio.get_cancelled_exc_class():
        code = "cancelled"
        raise
    except Exception as error:
        code = "internal"
        return replies.refused(replies.masked(error))
    finally:
        logger.info("%s %s %.3f s", spec.name, code, time.monotonic() - begun)


async def _run(pool: Pool, spec: ToolSpec[Any, Any, Any], params: Params, on_progress: OnProgress) -> Result:
    if spec.place == "server":
        module = importlib.import_module(f"nnterp_mcp.toolset.{spec.name}.handle")
        return await module.handle(pool, params, on_progress)
    handle = getattr(params, "model", None)
    data = await pool.call(handle, spec.name, params.model_dump(mode="json"), on_progress)
    return spec.result.model_validate(data)
