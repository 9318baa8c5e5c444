"""`python -m nnterp_mcp`."""

from __future__ import annotations

from nnterp_mcp.cli import run_process

if __name__ == "__main__":
    run_process()
