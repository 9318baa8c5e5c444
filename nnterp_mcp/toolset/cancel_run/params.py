"""Arguments of `cancel_run`."""

from __future__ import annotations

from nnterp_mcp.contract import Params
from nnterp_mcp.request.fields import RunId


class CancelRunParams(Params):
    """Which run to end."""

    run_id: RunId
