"""Who may speak: clients that bear the token, under names that the server answers to, from pages that it knows.

Both checks stand before every route, the unknown ones included, and before a request's body is read.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nnterp_mcp.errors import Forbidden
from nnterp_mcp.settings import LOOPBACK, Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

HEALTH_PATH = "/health"

_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


def require_safe_bind(settings: Settings) -> None:
    """Refuses to serve beyond this machine without a token and a list of hosts.

    Raises:
        Forbidden: The host is no loopback address, and one of them is missing; with the next step.
    """
    if settings.transport == "stdio" or settings.host in LOOPBACK:
        return
    steps: dict[str, str] = {}
    if settings.token is None:
        steps["a token"] = "Set NNTERP_MCP_TOKEN to at least 16 random characters."
    if not settings.allowed_hosts:
        steps["allowed hosts"] = "Say with --allowed-host under which names clients reach the server."
    if steps:
        raise Forbidden(
            f"the server binds to {settings.host!r}, beyond loopback ({', '.join(LOOPBACK)}), only with a token and "
            f"allowed hosts; without: {', '.join(steps)}",
            " ".join(steps.values()),
        )


def transport_security(settings: Settings) -> TransportSecuritySettings:
    """The `Host` and `Origin` headers that are taken: the loopback's, and those of the settings."""
    loopback = [f"http://{name}" for name in _LOOPBACK_NAMES]
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[*_with_any_port(_LOOPBACK_NAMES), *_with_any_port(settings.allowed_hosts)],
        allowed_origins=[*_with_any_port(loopback), *settings.allowed_origins],
    )


def _with_any_port(names: Sequence[str]) -> list[str]:
    return [form for name in names for form in (name, f"{name}:*")]


class HostCheck:
    """Refuses a request for another host (421), or from a page of another origin (403).

    A browser that was lured to a page sends that page's name, wherever the name leads (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, security: TransportSecuritySettings) -> None:
        self._app = app
        self._check = TransportSecurityMiddleware(security)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or passes on one request."""
        refusal = await self._check.validate_request(Request(scope)) if scope["type"] == "http" else None
        await (refusal(scope, receive, send) if refusal else self._app(scope, receive, send))


class BearerAuth:
    """Demands the token with every request (RFC 6750) but `GET /health`, whose answer says nothing."""

    def __init__(self, app: ASGIApp, token: SecretStr | None) -> None:
        self._app = app
        self._token = None if token is None else token.get_secret_value().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or passes on one request."""
        answer = self._answer(Request(scope)) if scope["type"] == "http" else None
        await (answer(scope, receive, send) if answer else self._app(scope, receive, send))

    def _answer(self, request: Request) -> Response | None:
        if request.method == "GET" and request.scope["path"] == HEALTH_PATH:
            return Response(status_code=204)
        if self._token is None:
            return None
        given = request.headers.getlist("authorization")
        scheme, _, credentials = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() == "bearer" and hmac.compare_digest(credentials.strip().encode(), self._token):
            return None
        return _unauthorized(sent=bool(given))


def _unauthorized(sent: bool) -> Response:
    """The refusal; a client that sent no credentials is told nothing but the scheme, as RFC 6750 asks."""
    error = {"error": "invalid_token", "error_description": "the bearer token is not this server's"}
    missing = {"error": "unauthorized", "error_description": "send the header Authorization: Bearer TOKEN"}
    details = "".join(f', {name}="{value}"' for name, value in error.items()) if sent else ""
    return JSONResponse(
        error if sent else missing,
        status_code=401,
        headers={"WWW-Authenticate": f'Bearer realm="nnterp-mcp"{details}'},
    )
