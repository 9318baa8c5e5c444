"""Arguments of `session`."""

from __future__ import annotations

from nnterp_mcp.contract import Params


class SessionParams(Params):
    """Nothing: the session is the server's."""
