"""The parser of `nnterp-mcp`."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace

from nnterp_mcp import __version__
from nnterp_mcp.commands import check, completion, connect, fetch, install, runs, serve, view


def build_parser() -> ArgumentParser:
    """All commands; under shell completion the process ends here, with the words that fit."""
    parser = ArgumentParser(prog="nnterp-mcp", description="An interpretability laboratory for LLM agents, over MCP.")
    parser.add_argument("--version", action="version", version=f"nnterp-mcp {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve.add_serve(commands)
    connect.add_connect(commands)
    install.add_install(commands)
    demo = commands.add_parser("demo", help="start a server, connect a client and show a logit lens")
    demo.add_argument(
        "--transport", choices=["stdio", "http", "sse"], default="stdio", help="how the client connects (stdio)"
    )
    demo.set_defaults(run=_demo)
    fetch.add_fetch(commands)
    check.add_check(commands)
    runs.add_runs(commands)
    view.add_view(commands)
    completion.add_completion(commands)
    if "_ARGCOMPLETE" in os.environ:
        completion.complete(parser)
    return parser


def _demo(options: Namespace) -> int:
    from nnterp_mcp.demo import demonstrate

    return demonstrate(options.transport)
