"""Writes every generated file anew: `make generated`. `--check` only says which are not current."""

from __future__ import annotations

import subprocess
import sys

from project import ROOT

SCRIPTS = ("reference", "api_reference", "server_json", "bundle", "plugin", "stubs", "token_budget")
"""In tools/; each writes a file of its own, or with `--check` says by its exit code whether it is current."""


def stale(*arguments: str) -> list[str]:
    """The scripts that fail; with `--check` as the argument, those whose file is not current."""
    failed: list[str] = []
    for script in SCRIPTS:
        named = ("-m", "tools.stubs") if script == "stubs" else (f"tools/{script}.py",)
        if subprocess.run([sys.executable, *named, *arguments], cwd=ROOT, check=False).returncode:
            failed.append(script)
    return failed


if __name__ == "__main__":
    failed = stale(*sys.argv[1:])
    sys.exit(f"not current: {', '.join(failed)}" if failed else 0)
