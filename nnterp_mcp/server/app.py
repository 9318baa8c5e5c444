"""The MCP server: one generic path for every tool. Tools come from `toolset/`; nothing here knows any of them."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import anyio
import anyio.to_thread
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    RequestParams,
    Tool,
    ToolAnnotations,
)

from nnterp_mcp import __version__
from nnterp_mcp.contract import Answer, Late, Params, ToolSpec
from nnterp_mcp.errors import Cancelled, NnterpError
from nnterp_mcp.formatting import elided, escaped
from nnterp_mcp.pool.faults import masked
from nnterp_mcp.pool.followers import OnProgress
from nnterp_mcp.pool.live_runs import LiveRun, late
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.pool.session import Session
from nnterp_mcp.request.named_sets import sets_from
from nnterp_mcp.request.remarks import collect_remarks
from nnterp_mcp.runs import figures
from nnterp_mcp.server import apps, identity, replies, skills, tasks
from nnterp_mcp.server.completions import Completions
from nnterp_mcp.server.departures import while_there
from nnterp_mcp.server.hints import HINTS
from nnterp_mcp.server.prompts import PromptHandlers
from nnterp_mcp.server.resources import Resources
from nnterp_mcp.server.served import limits, served
from nnterp_mcp.server.values import require_few_values
from nnterp_mcp.toolset import specs

logger = logging.getLogger(__name__)

INSTRUCTIONS = """\
A laboratory for looking inside open-weight language models. A loaded model stays for every call and client.
1. Load: load_model ("smollm2-135m" is built in). With one model loaded, leave `model` out.
2. Look: tokenize (positions), logit_lens and patchscope (what each layer holds), attention_probs (what heads read; \
induction and other kinds of heads), features (sparse autoencoders), inspect_model (modules, sites).
3. Hypothesise: attribute (which parts or tokens give an answer), collect_activations and train_probe (what can be \
read off). Say what would count against it.
4. Intervene: patch_activations (which states carry an answer), make_vector and steer, generate (text beside its \
baseline), `interventions` in most tools that run the model, edit_model (edits that stay).
5. Control: control=true in steer and patch_activations, shuffled labels in train_probe, random heads beside those you \
knock out, run_prompts over many prompts.
6. Report numbers with their control, n and run_id. Experiments are runs on disk: read_run gives all that an \
answer left out, and waits for a call that goes on (cancel_run ends it); session lists models, vectors and runs. \
plot=true adds a picture.

interventions: a list of {op, layers, ...}. op: add (vector, factor), scale (factor), zero, mean (prompts), patch \
(from: {prompt, position, layer} or {run}), project_out (vector), all with site, positions, heads or neurons; skip; \
knockout (heads, query_positions, key_positions); set_attention (heads, pattern). site: token_embeddings, \
layers_input, layers_output (default of add, patch and project_out), attentions_output and mlps_output (what is added \
to the stream; before a norm behind it: attentions_raw_output, mlps_raw_output), mlps_input, neurons, heads_output, \
queries, keys, values, attention_probabilities. They act in the order the model runs in.

Layers and positions count from 0, negative ones from the end. Probabilities run from 0 to 1; entropies and KL \
divergences are in nats; nnterp://glossary explains words. Errors say what to change."""


def build(session: Session) -> Server[Any]:
    """A server whose calls run in the session's workers."""
    tools, runs_as_tasks = served(session.settings.tools), tasks.Tasks(session)
    recipes = skills.written_for(set(tools))
    prompts, recipes_as_skills = PromptHandlers(session, recipes), skills.Skills(recipes)
    resources = Resources(session, recipes_as_skills)

    async def list_tools(context: ServerRequestContext[Any], params: PaginatedRequestParams | None) -> ListToolsResult:
        replies.first_page(params)
        return ListToolsResult(tools=[definition(spec) for spec in tools.values()])

    async def call_tool(
        context: ServerRequestContext[Any], params: CallToolRequestParams
    ) -> CallToolResult | tasks.Task:
        spec = tools.get(params.name)
        if spec is None:
            raise MCPError(
                INVALID_PARAMS, f"Unknown tool: {escaped(elided(params.name, 80))}. Tools: {', '.join(tools)}"
            )

        async def on_progress(progress: Progress) -> None:
            await context.session.report_progress(progress.done, progress.total, progress.message)

        deferred = runs_as_tasks if tasks.declared(context) else None
        request = _Request(session, spec, _client(context), on_progress, deferred)
        async with while_there(context.request):
            return await _call(request, params.arguments or {})
        return replies.refused(Cancelled("the client hung up"))

    server = Server(
        "nnterp-mcp",
        version=__version__,
        title="nnterp: a laboratory inside language models",
        instructions=INSTRUCTIONS + limits(tools),
        website_url=identity.HOMEPAGE,
        icons=[identity.ICON],
        cache_hints=HINTS,
        on_list_tools=list_tools,
        on_list_prompts=prompts.list,
        on_get_prompt=prompts.get,
        on_list_resources=resources.list,
        on_list_resource_templates=resources.list_templates,
        on_read_resource=resources.read,
        on_completion=Completions(session).complete,
    )
    server.extensions = {apps.EXTENSION: {}}
    runs_as_tasks.serve(server)
    recipes_as_skills.serve(server)
    server.add_request_handler("tools/call", CallToolRequestParams, call_tool)
    server.add_request_handler("server/discover", RequestParams, identity.discovery(server))
    return server


@cache
def definition(spec: ToolSpec[Any, Any, Any]) -> Tool:
    """A tool's entry in `tools/list`; cached, since the SDK requests the whole list at every call over HTTP."""
    return Tool(
        name=spec.name,
        title=spec.title,
        description=spec.description,
        input_schema=spec.advertised_schema(),
        output_schema=spec.output_schema(),
        annotations=_annotations(spec),
        _meta=apps.tool_meta(spec.name),
    )


def _client(context: ServerRequestContext[Any]) -> Hashable:
    """Identifies the caller: a session of streamable HTTP, else an address, or the connection of stdio and SSE."""
    http = context.request
    if http is None:
        return id(context.session)
    return http.headers.get("mcp-session-id") or (http.client and http.client.host, http.query_params.get("session_id"))


def _annotations(spec: ToolSpec[Any, Any, Any]) -> ToolAnnotations:
    """MCP's hints on a tool; for one that only reads, the others mean nothing."""
    if spec.read_only:
        return ToolAnnotations(read_only_hint=True, open_world_hint=spec.open_world)
    return ToolAnnotations(
        read_only_hint=False,
        destructive_hint=spec.destructive,
        idempotent_hint=spec.idempotent,
        open_world_hint=spec.open_world,
    )


@dataclass(frozen=True)
class _Request:
    """One `tools/call` as it runs.

    Attributes:
        session: The server's session.
        spec: The tool.
        client: The caller; clients take turns at a model.
        on_progress: Sends progress notifications to the client.
        tasks: Where runs become tasks, None for a client that knows none.
        facts: Fields of the call's line in the log.
    """

    session: Session
    spec: ToolSpec[Any, Any, Any]
    client: Hashable
    on_progress: OnProgress
    tasks: tasks.Tasks | None
    facts: dict[str, Any] = field(default_factory=dict)


async def _call(request: _Request, arguments: dict[str, Any]) -> CallToolResult | tasks.Task:
    begun = time.monotonic()
    facts = request.facts
    facts |= {"tool": request.spec.name, "outcome": "ok"}
    try:
        params, remarks = await anyio.to_thread.run_sync(_parse, request, arguments)
        answer = await _answer(request, params)
        if isinstance(answer, tasks.Task):
            facts["outcome"] = "task"
            return answer
        answer.notes = [*answer.notes, *remarks]
        if isinstance(answer, Late):
            facts["outcome"] = answer.state
        return await anyio.to_thread.run_sync(replies.answered, answer)
    except NnterpError as error:
        facts["outcome"] = error.code
        return replies.refused(error)
    except anyio.get_cancelled_exc_class():
        facts["outcome"] = "cancelled"
        raise
    except BaseException as error:
        facts["outcome"] = "internal"
        return replies.refused(masked(error))
    finally:
        facts["seconds"] = round(time.monotonic() - begun, 3)
        logger.info(" ".join(f"{name}={value}" for name, value in facts.items()), extra={"facts": facts})


def _parse(request: _Request, arguments: dict[str, Any]) -> tuple[Params, Iterable[str]]:
    """Validates arguments, with remarks on them; runs on a thread, so that other clients do not wait."""
    require_few_values(arguments)
    with sets_from(request.session.prompt_sets.find), collect_remarks() as remarks:
        return request.spec.parse(arguments), remarks


async def _answer(request: _Request, params: Params) -> Answer | tasks.Task:
    spec = request.spec
    if spec.place == "server":
        module = await anyio.to_thread.run_sync(importlib.import_module, f"nnterp_mcp.toolset.{spec.name}.run")
        result = await module.run(request.session, params, request.on_progress)
        return result if isinstance(result, Answer) else await anyio.to_thread.run_sync(spec.summarize, result)
    if spec.recorded:
        run = await request.session.runs.start(spec, params, request.client)
        answer, pictured = await _follow(request, run), getattr(params, "plot", False)
        if isinstance(answer, Late) and request.tasks is not None:
            return request.tasks.create(run, pictured)
        return await _illustrated(request, run, answer) if pictured else answer
    handle = getattr(params, "model", None)
    data = params.model_dump(mode="json")
    reply = await request.session.pool.call(handle, spec.name, data, request.on_progress, waits=False)
    return spec.summarize(spec.result.model_validate(reply))


async def _follow(request: _Request, run: LiveRun) -> Answer:
    """Waits for a run until it is late. The run continues after that, unless the client has left."""
    within = request.session.settings.reply_within
    request.facts.update(run=run.id, model=run.record.model)
    try:
        with anyio.move_on_after(within if request.tasks is None else min(within, tasks.AT_ONCE)):
            await run.follow(request.on_progress)
    except anyio.get_cancelled_exc_class():
        run.cancel(Cancelled("the client cancelled the call, or left"))
        raise
    request.facts.update(queued=round(run.queued, 3), computed=round(run.computed, 3))
    if not run.ended.is_set():
        return late(run)
    if run.error is not None:
        raise run.error
    assert run.answer is not None
    return request.spec.answer.model_validate(run.answer | {"run_id": run.id})


async def _illustrated(request: _Request, run: LiveRun, answer: Answer) -> Answer:
    """Adds the picture to an answer, or a note on why there is none."""
    if isinstance(answer, Late):
        note = "format='picture' adds the picture."
        return answer.model_copy(update={"notes": [*answer.notes, note]})
    try:
        store = request.session.runs.store
        record = await anyio.to_thread.run_sync(store.read, run.id)
        picture, note = await anyio.to_thread.run_sync(figures.draw, store, record, specs()), figures.where(record)
    except NnterpError as error:
        picture, note = None, f"No picture: {error.message.rstrip('.')}. {error.next_step}".rstrip()
    return answer.model_copy(update={"notes": [*answer.notes, note], "picture": picture})
