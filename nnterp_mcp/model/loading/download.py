"""Reports the progress of a download instead of drawing it on a terminal."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from nnterp_mcp.formatting import size


def reporting_bar(report: Callable[[str], None]) -> type[Any]:
    """A `tqdm` class for `snapshot_download` whose bars call `report` about once a second."""

    class ReportingBar(tqdm):  # generic in its stubs only
        _told = 0.0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **(kwargs | {"file": io.StringIO(), "mininterval": 0.5, "disable": False}))

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            now = time.monotonic()
            if self.unit == "B" and self.total and now - ReportingBar._told > 1:
                ReportingBar._told = now
                report(f"downloaded {size(self.n)} of {size(self.total)}")
            return shown

    return ReportingBar
