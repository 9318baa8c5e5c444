"""The command line: `nnterp-mcp serve | demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnterp_mcp import __version__
from nnterp_mcp.errors import InvalidRequest, NnterpError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except NnterpError as error:
        print(f"{error.code}: {error.message}\n{error.next_step}".rstrip(), file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nnterp-mcp", description="A laboratory inside language models, over MCP.")
    parser.add_argument("--version", action="version", version=f"nnterp-mcp {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve MCP (on stdio unless told otherwise)")
    serve.add_argument(
        "--transport", choices=["stdio", "http", "sse"], help="http and sse serve both kinds on one port"
    )
    serve.add_argument("--host", help="address to bind to; loopback only (127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to bind to; 0 lets the system choose (8765)")
    serve.add_argument("--cache", type=Path, help="folder for converted weights")
    serve.add_argument("--data", type=Path, help="folder for named vectors")
    serve.add_argument(
        "--folder",
        type=Path,
        action="append",
        dest="folders",
        metavar="FOLDER",
        help="let calls read files below this folder; may be given again",
    )
    serve.add_argument(
        "--trust-remote-code", action="store_true", default=None, help="let models run code of their own"
    )
    serve.set_defaults(run=_serve)

    demo = commands.add_parser("demo", help="start a server, connect a client and show a logit lens")
    demo.add_argument("--transport", choices=["stdio", "http", "sse"], default="stdio")
    demo.set_defaults(run=_demo)
    return parser


def _serve(options: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from nnterp_mcp.server.transports import serve
    from nnterp_mcp.settings import Settings

    names = ("transport", "host", "port", "cache", "data", "folders", "trust_remote_code")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(options, name)) is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        wrong = "\n".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors())
        raise InvalidRequest(
            wrong, "Change the flag, or the variable of the environment: NNTERP_MCP_ and the name in capitals."
        ) from None
    serve(settings)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from nnterp_mcp.demo import demonstrate

    return demonstrate(options.transport)
