"""The plugin for Claude Code: that its files are those of the recipes and of this version."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from nnterp_mcp import __version__
from nnterp_mcp.server.recipes import RECIPES
from tests.serving import serve_command

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "plugin"


def test_the_plugin_is_current() -> None:
    command = [sys.executable, str(ROOT / "tools" / "plugin.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run: python tools/plugin.py"


def test_the_plugin_names_this_version_its_server_and_every_recipe() -> None:
    manifest = json.loads((PLUGIN / ".claude-plugin" / "plugin.json").read_text())
    (offered,) = json.loads((ROOT / ".claude-plugin" / "marketplace.json").read_text())["plugins"]
    (server,) = json.loads((PLUGIN / ".mcp.json").read_text())["mcpServers"].values()

    assert manifest["version"] == offered["version"] == __version__
    assert (ROOT / offered["source"]).resolve() == PLUGIN
    assert server == {"command": "nnterp-mcp", "args": serve_command()[-1:]}
    assert len(list(PLUGIN.glob("skills/*/SKILL.md"))) == len(RECIPES)
