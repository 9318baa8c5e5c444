"""Small files of services that whoever starts the server names: SAELens' registry, and labels of features."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.request import HTTPRedirectHandler, Request, build_opener

_SECONDS = 15.0
_AGENT = "nnterp-mcp"


class _NoRedirects(HTTPRedirectHandler):
    """Redirects lead to hosts that nobody named."""

    def redirect_request(self, *args: Any, **more: Any) -> None:
        return None


def download(address: str, headers: Mapping[str, str], most: int) -> bytes:
    """The content at an address, redirects refused.

    Args:
        address: Begins with http:// or https://.
        headers: Headers of the request.
        most: The most bytes that are read.

    Raises:
        OSError: It cannot be reached, answers with an error, or is larger.
    """
    request = Request(address, headers={"User-Agent": _AGENT, **headers})
    try:
        with build_opener(_NoRedirects).open(request, timeout=_SECONDS) as answer:
            content: bytes = answer.read(most + 1)
    except HTTPException as error:
        raise OSError(f"no HTTP answer ({type(error).__name__})") from error
    if len(content) > most:
        raise OSError(f"more than {most} bytes")
    return content
