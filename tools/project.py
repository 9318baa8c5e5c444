"""What the files that are generated say of the project: pyproject.toml, read once."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def written(data: dict[str, Any]) -> str:
    """JSON as it stands in the repository."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def keep_current(target: Path, content: str) -> int:
    """Writes a generated file, or with `--check` says by the exit code whether it is current."""
    if "--check" in sys.argv:
        return int(not target.exists() or target.read_text(encoding="utf-8") != content)
    target.write_text(content, encoding="utf-8")
    return 0
