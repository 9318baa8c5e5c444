"""The time for which clients may cache lists and documents of this server (SEP-2549)."""

from __future__ import annotations

from mcp.server.caching import CacheHint
from mcp_types.methods import CacheableMethod

FIXED = CacheHint(ttl_ms=3_600_000, scope="public")
"""For what stays the same as long as the server runs, for every client: an hour, as the next start may be an update."""

HINTS: dict[CacheableMethod, CacheHint] = {
    "server/discover": FIXED,
    "tools/list": FIXED,
    "prompts/list": FIXED,
    "resources/templates/list": FIXED,
}
"""The list of resources names the latest runs, so it is stale at once; what is read says it for itself."""
