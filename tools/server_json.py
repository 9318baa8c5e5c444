"""Writes server.json, the entry of the MCP registry, from pyproject.toml. `--check` only says whether it is current."""

from __future__ import annotations

import sys
from typing import Any

from project import PROJECT, ROOT, keep_current, written

NAMESPACE = "io.github.nnterp-mcp"
SCHEMA = "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"

VARIABLES: tuple[dict[str, Any], ...] = (
    {
        "name": "NNTERP_MCP_CACHE",
        "description": "Folder for converted weights; the platform's cache folder by default.",
        "format": "filepath",
    },
    {
        "name": "NNTERP_MCP_DATA",
        "description": "Folder for runs and named vectors; the platform's data folder by default.",
        "format": "filepath",
    },
    {
        "name": "NNTERP_MCP_FOLDERS",
        "description": "JSON list of folders below which local models and prompt files may be read; none by default.",
    },
    {"name": "HF_TOKEN", "description": "Hugging Face token, for gated and private models.", "isSecret": True},
)


def server_json() -> dict[str, Any]:
    """The whole entry."""
    name, version = PROJECT["name"], PROJECT["version"]
    return {
        "$schema": SCHEMA,
        "name": f"{NAMESPACE}/{name}",
        "title": name,
        "description": "A laboratory inside open-weight language models: logit lens and more on a warm model.",
        "websiteUrl": PROJECT["urls"]["Homepage"],
        "repository": {"url": PROJECT["urls"]["Repository"], "source": "github"},
        "version": version,
        "packages": [
            {
                "registryType": "pypi",
                "identifier": name,
                "version": version,
                "runtimeHint": "uvx",
                "transport": {"type": "stdio"},
                "packageArguments": [{"type": "positional", "value": "serve"}],
                "environmentVariables": list(VARIABLES),
            }
        ],
    }


if __name__ == "__main__":
    sys.exit(keep_current(ROOT / "server.json", written(server_json())))
