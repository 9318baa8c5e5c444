"""What the package says of itself, and what an sdist holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
WHOLE = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = WHOLE["project"]
BY_OTHERS = {"gguf"}
"""Imported by transformers where a model wants it."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[><=; ]", name)[0]).lower()


def imported() -> set[str]:
    """The top-level packages that the code imports."""
    found: set[str] = set()
    for path in (ROOT / "nnterp_mcp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
    return {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) - {"nnterp_mcp"}


def test_what_is_imported_is_declared() -> None:
    declared = {canonical(name) for name in PROJECT["dependencies"]}
    optional = {
        canonical(name) for extra in ("adapters", "display") for name in PROJECT["optional-dependencies"][extra]
    }
    owners = packages_distributions()
    needed = {package: {canonical(owner) for owner in owners.get(package, [package])} for package in imported()}

    assert {package for package, by in needed.items() if not by & (declared | optional)} == set()
    assert declared - {owner for by in needed.values() for owner in by} == BY_OTHERS


def test_one_http_client_will_do() -> None:
    assert imported() & {"httpx", "httpx2", "requests", "aiohttp", "urllib3"} == {"httpx2"}


def test_metadata_leads_somewhere() -> None:
    assert {"Homepage", "Documentation", "Repository", "Issues", "Changelog"} <= PROJECT["urls"].keys()
    assert PROJECT["authors"]


def test_an_sdist_holds_what_is_kept() -> None:
    """All that is under version control but what only this repository's own machines read."""
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not kept:
        kept = [path.name for path in ROOT.iterdir()]  # unpacked from an sdist
    roots = {path.partition("/")[0] for path in kept}
    included = {*WHOLE["tool"]["hatch"]["build"]["targets"]["sdist"]["include"], "pyproject.toml", "PKG-INFO"}

    assert {root for root in roots if not root.startswith(".")} <= included
