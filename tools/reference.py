"""Writes docs/tools.md, the tool reference, from the specs. `--check` only says whether it is current."""

from __future__ import annotations

import sys
from pathlib import Path

from nnterp_mcp.server.documents import reference

TARGET = Path(__file__).parent.parent / "docs" / "tools.md"


def main() -> int:
    """Writes the page, or with `--check` compares it."""
    if "--check" in sys.argv:
        return int(TARGET.read_text() != reference())
    TARGET.write_text(reference())
    return 0


if __name__ == "__main__":
    sys.exit(main())
