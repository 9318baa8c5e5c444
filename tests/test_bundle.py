"""The bundle for desktop clients: what it says, what it holds, and that it starts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nnterp_mcp import __version__
from nnterp_mcp.toolset import specs
from tests.serving import stdio

ROOT = Path(__file__).parent.parent
LARGEST = 2_000_000
"""Bytes of a bundle: no weights, and none of what uv installs."""


def bundle(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "bundle.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_manifest_is_current() -> None:
    assert bundle("--check").returncode == 0, "run: python tools/bundle.py"


def test_the_manifest_names_this_version_and_these_tools() -> None:
    manifest = json.loads((ROOT / "bundle" / "manifest.json").read_text())

    assert (manifest["version"], manifest["server"]["type"]) == (__version__, "uv")
    assert [tool["name"] for tool in manifest["tools"]] == list(specs())


def test_what_is_bundled_serves(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    assert bundle("--stage", str(folder)).returncode == 0
    (tmp_path / "models").mkdir()

    with stdio([sys.executable, str(folder / "server.py"), str(tmp_path / "models")], folders="[]") as caller:
        assert "load_model" in {tool.name for tool in caller.tools()}
        assert "residual stream" in caller.read("nnterp://glossary").contents[0].text
        refused = caller.call("load_model", model=str(tmp_path / "models" / "none"))
    assert str(tmp_path / "models") in refused.content[0].text
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 2 * LARGEST


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npx") is None, reason="the format's own tool runs on Node")
def test_the_formats_own_tool_takes_the_bundle(tmp_path: Path) -> None:
    target = tmp_path / "nnterp-mcp.mcpb"
    done = bundle("--pack", str(target))

    assert done.returncode == 0, done.stderr
    assert "Manifest schema validation passes!" in done.stdout
    assert target.stat().st_size < LARGEST
    with zipfile.ZipFile(target) as packed:
        names = set(packed.namelist())
    assert {"manifest.json", "pyproject.toml", "server.py", "nnterp_mcp/server/glossary.md"} <= names
    assert not any("__pycache__" in name or name.endswith((".safetensors", ".gguf")) for name in names)
