"""The server never imports torch, transformers or nnsight: a client waits for it, and they take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import environment, raw

HEAVY = ("torch", "transformers", "nnsight", "accelerate")
WATCHED = """
import json, os, sys
end = os._exit
def report(code):
    with open({report!r}, "w") as file:
        json.dump(sorted(name for name in {heavy!r} if name in sys.modules), file)
    end(code)
os._exit = report
{breach}
from nnterp_mcp.cli import main
main(["serve"])
"""


def loaded_by(code: str) -> list[str]:
    """The heavy packages that some code imports, in a process of its own."""
    told = f"{code}\nimport sys, json\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    return json.loads(subprocess.run([sys.executable, "-c", told], check=True, capture_output=True).stdout)


def loaded_by_a_session(folder: Path, breach: str = "") -> list[str]:
    """The heavy packages that a server has imported once it has answered initialize and tools/list, and ended."""
    report = folder / "loaded.json"
    code = WATCHED.format(report=str(report), heavy=HEAVY, breach=breach)
    with raw([sys.executable, "-c", code]) as server:
        server.initialize()
        server.send("tools/list", 1)
        assert len(server.answer(1)["result"]["tools"]) >= 5
        assert server.process.stdin is not None
        server.process.stdin.close()
        assert server.process.wait(30) == 0
    return json.loads(report.read_text())


def test_a_server_that_has_answered_has_loaded_none_of_them(tmp_path: Path) -> None:
    assert loaded_by_a_session(tmp_path) == []


def test_a_breach_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy" / "nnsight.py").write_text("")
    breach = f"sys.path.insert(0, {str(tmp_path / 'heavy')!r}); import nnsight"

    assert loaded_by_a_session(tmp_path, breach) == ["nnsight"]


@pytest.mark.parametrize(
    "code",
    [
        "import nnterp_mcp",
        "import nnterp_mcp.cli, nnterp_mcp.demo",
        "from nnterp_mcp import Laboratory",
        "from nnterp_mcp.commands.reproduce import export, replay",
        "from nnterp_mcp.toolset import specs; specs()",
        "import nnterp_mcp.server.app, nnterp_mcp.server.transports, nnterp_mcp.pool.pool",
        "from nnterp_mcp.server.app import definition; from nnterp_mcp.toolset import specs\n"
        "for spec in specs().values(): definition(spec)",
        "import importlib; from nnterp_mcp.toolset import specs\n"
        "for spec in specs().values():\n"
        "    if spec.place == 'server': importlib.import_module(f'nnterp_mcp.toolset.{spec.name}.run')",
    ],
)
def test_importing_the_servers_half_loads_none_of_them(code: str) -> None:
    assert loaded_by(code) == []


def test_importing_the_workers_half_loads_them() -> None:
    assert loaded_by("import nnterp_mcp.experiments.logit_lens") == list(HEAVY)


def test_a_library_user_keeps_nnsights_save() -> None:
    code = "import nnterp_mcp.model.standardized; assert hasattr(object, 'save')"

    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
