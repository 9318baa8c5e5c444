"""The HTTP routes: streamable HTTP and SSE on one port, behind every check and limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcp.server.lowlevel import Server
from starlette.types import ASGIApp, Receive, Scope, Send

from nnterp_mcp.server.auth import BearerAuth, HostCheck, transport_security
from nnterp_mcp.server.departures import Departures
from nnterp_mcp.server.limits import BodyLimit, RateLimit, SessionLimit
from nnterp_mcp.settings import Settings

if TYPE_CHECKING:
    from mcp.server.transport_security import TransportSecuritySettings
    from starlette.applications import Starlette

HTTP_PATH, SSE_PATH, SSE_MESSAGES = "/mcp", "/sse", "/messages/"


def http_app(server: Server[Any], settings: Settings) -> ASGIApp:
    """The ASGI application: streamable HTTP and SSE on one port, behind every check and limit."""
    security = transport_security(settings)
    app: ASGIApp = BodyLimit(Departures(_routes(server, settings, security)), settings.max_body)
    app = BearerAuth(app, settings.token)
    app = HostCheck(app, security)
    return RateLimit(app, settings.max_requests_per_minute)


def _routes(server: Server[Any], settings: Settings, security: TransportSecuritySettings) -> Starlette:
    from mcp.server.sse import SseServerTransport
    from starlette.routing import Mount, Route

    app = server.streamable_http_app(
        streamable_http_path=HTTP_PATH,
        host=settings.host,
        transport_security=security,
        max_request_body_size=settings.max_body,
        max_sessions=settings.max_sessions,
    )
    sse = SseServerTransport(SSE_MESSAGES, security_settings=security, max_request_body_size=settings.max_body)

    async def serve_sse(scope: Scope, receive: Receive, send: Send) -> None:
        async with sse.connect_sse(scope, receive, send) as (read, write):
            await server.run(read, write, server.create_initialization_options())

    app.router.routes.append(Route(SSE_PATH, endpoint=SessionLimit(serve_sse, settings.max_sessions), methods=["GET"]))
    app.router.routes.append(Mount(SSE_MESSAGES, app=sse.handle_post_message))
    return app
