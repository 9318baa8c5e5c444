"""Draws the figure of one run in a process of its own: a server hands over large results, to answer others meanwhile.

`python -m nnterp_mcp.commands.draw RUNS RUN` writes the picture to standard output, or an error as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nnterp_mcp.errors import NnterpError
from nnterp_mcp.runs.figures import REFUSED, draw_here
from nnterp_mcp.runs.records import RunError
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.toolset import specs


def write_picture(folder: str, run_id: str) -> int:
    """Draws a run, writes the picture and returns the exit code."""
    store = RunStore(Path(folder))
    try:
        sys.stdout.buffer.write(draw_here(store, store.read(run_id), specs()))
    except NnterpError as error:
        sys.stdout.write(RunError.of(error).model_dump_json())
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(write_picture(*sys.argv[1:]))
