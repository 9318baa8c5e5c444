"""Lists the deployments of an NDIF service without a worker."""

from __future__ import annotations

from typing import Any

import httpx2

_PATIENCE = 3.0
"""Seconds within which a service has to answer: `session` answers at once otherwise."""

_MOST = 12
"""Models that are named."""


def describe_deployments(host: str, key: str) -> str:
    """Which models a service holds ready, in a sentence; or that it does not answer.

    Args:
        host: Its address.
        key: The API key; none where it is empty.
    """
    try:
        answer = httpx2.get(f"{host}/status", headers={"ndif-api-key": key} if key else {}, timeout=_PATIENCE)
        told: dict[str, Any] = answer.raise_for_status().json()
    except (httpx2.HTTPError, ValueError) as error:
        failed = isinstance(error, httpx2.HTTPStatusError)
        reason = f"HTTP {error.response.status_code}" if failed else type(error).__name__
        return f"NDIF at {host} does not say what it serves ({reason})."
    states: dict[str, str] = {}
    for deployment in told.get("deployments", {}).values():
        if deployment.get("deployment_level") in ("HOT", "WARM"):
            name, state = str(deployment.get("repo_id")), str(deployment.get("application_state", "")).lower()
            states[name] = "running" if "running" in (state, states.get(name)) else state
    if not states:
        return f"NDIF at {host} has no model deployed; it may deploy one that is asked for."
    named = ", ".join(f"{name} ({state})" for name, state in list(states.items())[:_MOST])
    more = f" and {len(states) - _MOST} more" if len(states) > _MOST else ""
    return f"NDIF at {host} serves {named}{more}."
