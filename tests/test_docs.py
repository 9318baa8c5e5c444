from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_tool_reference_is_current():
    command = [sys.executable, str(ROOT / "tools" / "reference.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run: python tools/reference.py"


def test_every_promise_of_safety_names_a_test_that_exists():
    files = {path.name: path.read_text() for path in ROOT.glob("tests/**/test_*.py")}
    file, found = "", 0
    for said, test in re.findall(r"`(?:(?:\w+/)?(test_\w+\.py)|…)::(test_\w+)`", (ROOT / "SECURITY.md").read_text()):
        file, found = said or file, found + 1
        assert f"def {test}(" in files[file], f"{file}::{test}"
    assert found > 20
