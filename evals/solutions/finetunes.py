"""Adapters of a planted model, by the tools."""

from __future__ import annotations

from typing import Any

from evals.planted_adapters import CONTEXT, FIRST, SECOND
from evals.question import Value
from evals.questions.finetunes import CARRIES, CARRIES_NOT
from evals.solutions.rows import Row, rows
from evals.tools import Tools

_MODEL = "planted-tuned"


async def _compare(tools: Tools, adapter: str, *parts: str) -> str:
    """Compares the model with an adapter, which is unloaded again, with that without; the run."""
    loaded = await tools.call("load_model", model=_MODEL, adapter=adapter)
    found = await tools.call("compare_models", model=loaded["model"], prompts=CONTEXT, parts=list(parts))
    await tools.call("unload_model", model=loaded["model"])
    return found["run_id"]


async def _part(tools: Tools, run: str, part: str, *columns: str) -> list[Row]:
    page: dict[str, Any] = await tools.call("read_run", run_id=run, part=part, columns=list(columns), limit=40)
    return rows(page)


async def _recoveries(tools: Tools, run: str) -> dict[int, float]:
    cells = await _part(tools, run, "cells", "site", "layer", "into_base")
    return {cell["layer"]: cell["into_base"] for cell in cells if cell["site"] == "mlps_output"}


async def carrier(tools: Tools) -> Value:
    """The MLP that recovers most."""
    run = await _compare(tools, FIRST, "predictions", "patching")
    recovered = await _recoveries(tools, run)
    layer = max(recovered, key=recovered.__getitem__)
    positions = await _part(tools, run, "positions", "position", "top")
    last = max(positions, key=lambda row: row["position"])
    return {"layer": layer, "recovery": recovered[layer], "token": last["top"]}


async def largest_change(tools: Tools) -> Value:
    """The weights say one layer, patching another."""
    run = await _compare(tools, SECOND, "weights", "patching")
    modules = await _part(tools, run, "modules", "module", "relative")
    most = max(modules, key=lambda row: row["relative"])
    layer = int(most["module"].split(".")[2])
    recovered = (await _recoveries(tools, run))[layer]
    return {"layer": layer, "recovery": recovered, "verdict": CARRIES if recovered > 0.5 else CARRIES_NOT}


SOLUTIONS = {"finetune-place": carrier, "finetune-largest-weights": largest_change}
