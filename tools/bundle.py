"""Builds the bundle for desktop clients (.mcpb): a manifest, the package, and what uv needs to install the rest.

Without arguments it writes bundle/manifest.json, and `--check` only says whether that is current. `--stage FOLDER` puts
the files of the bundle together; `--pack FILE` has the format's own tool check and pack them (needs `npx`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from project import PROJECT, ROOT, keep_current, written

from nnterp_mcp.server.app import INSTRUCTIONS
from nnterp_mcp.toolset import specs

SOURCE = ROOT / "bundle"
MCPB = "@anthropic-ai/mcpb@2.1.2"


def manifest() -> dict[str, Any]:
    """The manifest: how the client starts the server, what it asks its user, and what the tools are."""
    return {
        "manifest_version": "0.4",
        "name": PROJECT["name"],
        "display_name": "nnterp: inside language models",
        "version": PROJECT["version"],
        "description": PROJECT["description"],
        "long_description": INSTRUCTIONS.split("\n\n")[0],
        "author": {"name": "nnterp-mcp"},
        "license": PROJECT["license"],
        "keywords": PROJECT["keywords"],
        "server": {
            "type": "uv",
            "entry_point": "server.py",
            "mcp_config": {
                "command": "uv",
                "args": ["run", "--directory", "${__dirname}", "server.py", "${user_config.folders}"],
                "env": {"HF_TOKEN": "${user_config.hf_token}"},
            },
        },
        "tools": [{"name": spec.name, "description": spec.title} for spec in specs().values()],
        "prompts_generated": True,
        "compatibility": {
            "platforms": ["darwin", "win32", "linux"],
            "runtimes": {"python": PROJECT["requires-python"]},
        },
        "user_config": {
            "folders": {
                "type": "directory",
                "title": "Folders",
                "description": "Where local models and prompt files may be read; none by default.",
                "multiple": True,
                "required": False,
                "default": [],
            },
            "hf_token": {
                "type": "string",
                "title": "Hugging Face token",
                "description": "For gated and private models.",
                "sensitive": True,
                "required": False,
                "default": "",
            },
        },
    }


def project_toml() -> str:
    """What uv installs before the server starts; the package itself lies beside it."""
    lines = [
        "[project]",
        *(f'{name} = "{PROJECT[name]}"' for name in ("name", "version", "requires-python")),
        "dependencies = [",
        *(f'    "{requirement}",' for requirement in PROJECT["dependencies"]),
        "]",
        "",
        "[tool.uv]",
        "package = false",
    ]
    return "\n".join(lines) + "\n"


def stage(folder: Path) -> None:
    """Puts the files of the bundle into a new folder."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "nnterp_mcp", folder / "nnterp_mcp", ignore=unwanted)
    for file in (SOURCE / "manifest.json", SOURCE / "server.py", ROOT / "LICENSE"):
        shutil.copy(file, folder)
    (folder / "pyproject.toml").write_text(project_toml(), encoding="utf-8")


def pack(target: Path) -> int:
    """Checks and packs the bundle by the format's own tool, and returns its exit code."""
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        stage(Path(folder) / "bundle")
        for arguments in (["validate", f"{folder}/bundle/manifest.json"], ["pack", f"{folder}/bundle", str(target)]):
            if code := subprocess.run(["npx", "--yes", MCPB, *arguments], check=False).returncode:
                return code
    print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")
    return 0


def main() -> int:
    """Writes or compares the manifest, or puts the bundle together."""
    match sys.argv[1:]:
        case ["--stage", folder]:
            return stage(Path(folder)) or 0
        case ["--pack", file]:
            return pack(Path(file))
        case _:
            return keep_current(SOURCE / "manifest.json", written(manifest()))


if __name__ == "__main__":
    sys.exit(main())
