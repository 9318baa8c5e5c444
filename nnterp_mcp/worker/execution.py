"""Runs a tool on a bench: the one path of the worker's process and of a laboratory."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nnterp_mcp.cancellation import cancellable
from nnterp_mcp.contract import Params, Result, ToolSpec
from nnterp_mcp.request.remarks import collect_remarks

if TYPE_CHECKING:
    from nnterp_mcp.worker.job import Job
    from nnterp_mcp.worker.workbench import Bench


def runs_passes(spec: ToolSpec[Any, Any, Any]) -> bool:
    """False for a tool that only looks at a loaded model: its calls wait for no others."""
    return spec.recorded or spec.place == "server"


def run_tool(bench: Bench, spec: ToolSpec[Any, Any, Any], params: Params, job: Job) -> Result:
    """Runs a tool, or the worker's part of a tool that runs in the server, and adds remarks on the input.

    Raises:
        NnterpError: What the tool raises.
    """
    package = "worker" if spec.place == "server" else f"toolset.{spec.name}"
    name = spec.name if spec.place == "server" else "run"
    module = importlib.import_module(f"nnterp_mcp.{package}.{name}")
    # A tool that runs no pass may run next to one, on whose model it must not set hooks.
    stopping = bench.stopping(job.check, job.tell) if runs_passes(spec) else cancellable(job.check)
    with stopping, collect_remarks() as job.remarks:
        return job.told(module.run(bench, params, job))
