"""One line for each call, with what it took."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serving import stdio, text, until


@pytest.mark.slow
def test_lines_of_text(tiny: Callable[..., Path]) -> None:
    with stdio() as caller:
        assert not caller.call("load_model", model=str(tiny("llama"))).is_error
        read = caller.call("logit_lens", prompts="a")
        run_id = read.structured_content["run_id"]
        caller.call("logit_lens", prompts="a", layers=99)
        line = rf"tool=logit_lens outcome=ok run={run_id} model=tiny-llama queued=[\d.]+ computed=[\d.]+ seconds=[\d.]+"
        until(lambda: re.search(line, caller.log.read_text()), within=5)
        until(lambda: "tool=logit_lens outcome=invalid_request" in caller.log.read_text(), within=5)


def test_lines_of_json(tiny: Callable[..., Path]) -> None:
    with stdio(log_format="json") as caller:
        assert not caller.call("load_model", model=str(tiny("llama"))).is_error
        run_id = caller.call("logit_lens", prompts="a").structured_content["run_id"]
        assert text(caller.call("unload_model")).startswith("tiny-llama is unloaded")

        def calls() -> dict[str, dict[str, Any]]:
            lines = [line for line in caller.log.read_text().splitlines() if line.startswith("{")]
            return {said["tool"]: said for line in lines if "tool" in (said := json.loads(line))}

        until(lambda: "unload_model" in calls(), within=5)
        call = calls()["logit_lens"]
        assert (call["run"], call["model"], call["outcome"], call["level"]) == (run_id, "tiny-llama", "ok", "info")
        assert 0 <= call["queued"] <= call["computed"] <= call["seconds"]
