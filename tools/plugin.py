"""Writes the plugin for Claude Code: the server's entry, and the recipes as skills. `--check` only compares.

The plugin lies in plugin/, and the marketplace that offers it in .claude-plugin/, so that a clone is a marketplace.
"""

from __future__ import annotations

import sys
from typing import Any

from project import PROJECT, ROOT, keep_current, written

from nnterp_mcp.server import skills
from nnterp_mcp.server.identity import HOMEPAGE
from nnterp_mcp.server.recipes import RECIPES

NAME = "nnterp"
PLUGIN = ROOT / "plugin"


def files() -> dict[str, str]:
    """The generated files, by their paths from the root."""
    author = {"name": PROJECT["name"]}
    about: dict[str, Any] = {"name": NAME, "description": PROJECT["description"], "version": PROJECT["version"]}
    plugin = about | {"author": author, "homepage": HOMEPAGE, "license": PROJECT["license"]}
    marketplace = {
        "name": PROJECT["name"],
        "owner": author,
        "metadata": {"description": PROJECT["description"]},
        "plugins": [about | {"source": "./plugin"}],
    }
    servers = {"mcpServers": {NAME: {"command": PROJECT["name"], "args": ["serve"]}}}
    return {
        ".claude-plugin/marketplace.json": written(marketplace),
        "plugin/.claude-plugin/plugin.json": written(plugin),
        "plugin/.mcp.json": written(servers),
        **{f"plugin/skills/{skills.name(recipe)}/SKILL.md": skills.skill(recipe) for recipe in RECIPES.values()},
    }


def main() -> int:
    """Writes or compares every file; a skill that no recipe has is an outdated file."""
    wanted = {ROOT / path: content for path, content in files().items()}
    for path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
    outdated = [path for path in PLUGIN.rglob("*") if path.is_file() and path not in wanted]
    return max([keep_current(path, content) for path, content in wanted.items()] + [int(bool(outdated))])


if __name__ == "__main__":
    sys.exit(main())
