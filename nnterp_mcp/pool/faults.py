"""Internal errors of the server, as callers see them."""

from __future__ import annotations

import logging
import uuid

from nnterp_mcp.errors import Internal

logger = logging.getLogger(__name__)


def masked(error: BaseException, log_id: str | None = None) -> Internal:
    """Logs an internal error and returns one for the caller that has only the log id.

    Args:
        error: The exception.
        log_id: Its id in the log; a new one by default.
    """
    log_id = log_id or uuid.uuid4().hex[:8]
    logger.error("[%s] %s", log_id, type(error).__name__, exc_info=error)
    return Internal(
        f"an unexpected {type(error).__name__} in the server (log id {log_id})",
        "The server's log holds the details under that id; other calls are not affected.",
    )
