"""Authentication by bearer token, and checks of the Host and Origin headers.

Both run before routing, on unknown paths too, and before a request's body is read.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mcp.server.transport_security import TransportSecuritySettings
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response

from nnterp_mcp.errors import Forbidden
from nnterp_mcp.server.refusals import http_refusal
from nnterp_mcp.settings import LOOPBACK, Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

HEALTH_PATH = "/health"

_LAST_PORT = 65_535
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
    """The accepted `Host` and `Origin` headers: loopback's, and those in the settings."""
    loopback = [f"http://{name}" for name in _LOOPBACK_NAMES]
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[*_with_any_port(_LOOPBACK_NAMES), *_with_any_port(settings.allowed_hosts)],
        allowed_origins=[*_with_any_port(loopback), *settings.allowed_origins],
    )


def _with_any_port(names: Sequence[str]) -> list[str]:
    return [form for name in names for form in (name, f"{name}:*")]


class _Gate:
    """ASGI middleware that answers a request itself or passes it on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answer(Request(scope)) if scope["type"] == "http" else None
        await (answer(scope, receive, send) if answer else self._app(scope, receive, send))

    def _answer(self, request: Request) -> Response | None:
        raise NotImplementedError


class HostCheck(_Gate):
    """Refuses a request for another host (421), or from a page of another origin (403).

    A browser that was lured to a page sends that page's name, wherever the name leads (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, security: TransportSecuritySettings) -> None:
        super().__init__(app)
        self._security = security

    def _answer(self, request: Request) -> Response | None:
        hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
        if len(hosts) != 1 or not _is_among(hosts[0], self._security.allowed_hosts):
            return http_refusal(421, Forbidden("the server does not answer to this Host header", "See --allowed-host."))
        if len(origins) > 1 or not all(_is_among(origin, self._security.allowed_origins) for origin in origins):
            return http_refusal(403, Forbidden("pages of this Origin may not call the server", "See --allowed-origin."))
        return None


_NAMED = re.compile(r"(?P<name>([a-z][a-z0-9+.-]*://)?(\[[0-9a-f:.]+\]|[a-z0-9._-]+))(:(?P<port>[0-9]{1,5}))?")
"""A whole header: a host or an origin, with or without a port."""


def _is_among(header: str, allowed: Sequence[str]) -> bool:
    """True if a header's value is allowed, literally or with any port where `:*` is listed."""
    said = header.lower()
    found = _NAMED.fullmatch(said)
    if found is None or int(found["port"] or 0) > _LAST_PORT:
        return False
    names = {name.lower() for name in allowed}
    return said in names or (found["port"] is not None and f"{found['name']}:*" in names)


class BearerAuth(_Gate):
    """Requires the token in every request (RFC 6750) except `GET /health`, whose answer is empty."""

    def __init__(self, app: ASGIApp, token: SecretStr | None) -> None:
        super().__init__(app)
        self._token = None if token is None else token.get_secret_value().encode()

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
    """A 401 response; without credentials in the request it names only the scheme, as RFC 6750 requires."""
    wrong = "the bearer token is not this server's"
    details = f', error="invalid_token", error_description="{wrong}"' if sent else ""
    said = wrong if sent else "the server demands a token"
    error = Forbidden(said, "Send the header Authorization: Bearer TOKEN, with the server's.")
    return http_refusal(401, error, {"WWW-Authenticate": f'Bearer realm="nnterp-mcp"{details}'})
