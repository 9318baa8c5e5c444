from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema

from nnterp_mcp import __version__

ROOT = Path(__file__).parent.parent


def _manifest() -> dict[str, Any]:
    return json.loads((ROOT / "server.json").read_text())


def test_the_manifest_is_valid():
    jsonschema.validate(_manifest(), json.loads((ROOT / "tests" / "server.schema.json").read_text()))


def test_the_manifest_is_current():
    command = [sys.executable, str(ROOT / "tools" / "server_json.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run: python tools/server_json.py"


def test_the_manifest_names_this_version():
    assert _manifest()["version"] == __version__
    assert [package["version"] for package in _manifest()["packages"]] == [__version__]


def test_the_readme_claims_the_manifest():
    assert f"<!-- mcp-name: {_manifest()['name']} -->" in (ROOT / "README.md").read_text()
