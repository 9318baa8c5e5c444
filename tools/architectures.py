"""Writes docs/architectures.md, what was verified for every causal-LM type, and the list that the package carries."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from nnterp_mcp.verification.census import check_all_types, render_classes, render_table, totals

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architectures.md"
LIST = ROOT / "nnterp_mcp" / "verification" / "verified.json"


def main() -> int:
    """Run the census and write the page; the exit code says whether any number was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    jobs: int = parser.parse_args().jobs
    begun = time.monotonic()
    reports = check_all_types(jobs)
    PAGE.write_text(render_table(reports), encoding="utf-8")
    LIST.write_text(render_classes(reports), encoding="utf-8")
    print(totals(reports), f"{time.monotonic() - begun:.0f} s")
    return int(any(report.wrong for report in reports))


if __name__ == "__main__":
    sys.exit(main())
