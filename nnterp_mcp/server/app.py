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
A laboratory for looking inside open-weight language models. One warm model serves every call.
1. load_model ("smollm2-135m" is built in). While one model is loaded, `model` can be left out.
2. Look: tokenize (positions), logit_lens and patchscope (what each layer holds), attention_probs (what heads attend \
to, induction and other kinds of heads), inspect_model (modules and sites).
3. Hypothesise, then intervene: `interventions` in any tool that runs the model, generate (text beside its baseline), \
make_vector and steer.
4. Control: steer with control=true; knock out random heads beside the ones you mean; run_prompts over many prompts.
5. Report numbers with their control and n. session says what is loaded and which vectors exist; unload_model ends it.

interventions: a list of {op, layers, ...}. op: add (vector, factor), scale (factor), zero, mean (prompts), patch \
(from: {prompt, position, layer}), project_out (vector), all with site, positions, heads or neurons; skip; knockout \
(heads, query_positions, key_positions); set_attention (heads, pattern). site: token_embeddings, layers_input, \
layers_output (default), attentions_output, mlps_output, heads_output, queries, keys, values, attention_probabilities. \
They act in the order in which the model runs.

Layers and positions count from 0, negative ones from the end. Probabilities run from 0 to 1; entropies and KL \
divergences are in nats. Errors say what to change."""


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
