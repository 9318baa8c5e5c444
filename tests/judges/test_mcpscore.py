"""mcpscore's audit: titles, descriptions, hints, paging, errors, both eras."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.serving import environment, serve_command

LEAST = 98
"""Percent; the rest wants lists to be declared as changing, and ours do not."""


def test_scores_well(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("mcpscore")), "--no-config", "--fail-under", str(LEAST), "--stdio"]

    done = subprocess.run(
        [*command, *serve_command()],
        env=environment(data=tmp_path),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    said = done.stdout + done.stderr
    print("\n".join(line for line in said.splitlines() if "❌" in line or "score" in line))
    assert done.returncode == 0, said[-3000:]
    assert re.search(r"Final score: \d+/\d+", said)
