"""Faults of ours in the server, as its callers see them."""

from __future__ import annotations

import logging
import uuid

from nnterp_mcp.errors import Internal

logger = logging.getLogger(__name__)


def masked(error: BaseException, log_id: str | None = None) -> Internal:
    """A fault of ours under a log id, its details in the log only.

    Args:
        error: What was raised.
        log_id: What the log calls it; a new id by default.
    """
    log_id = log_id or uuid.uuid4().hex[:8]
    logger.error("[%s] %s", log_id, type(error).__name__, exc_info=error)
    return Internal(
        f"an unexpected {type(error).__name__} in the server (log id {log_id})",
        "The server's log holds the details under that id; other calls are not affected.",
    )
