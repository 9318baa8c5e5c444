"""`nnterp-mcp serve`: the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nnterp_mcp.commands.flags import positive_seconds, settings_of, whole_number

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from argparse import _SubParsersAction as Commands  # pyright: ignore[reportPrivateUsage]


def add_serve(commands: Commands[ArgumentParser]) -> None:
    """Adds the command to the parser of `nnterp-mcp`. Without a flag the environment decides."""
    serve = commands.add_parser("serve", help="serve MCP (on stdio unless told otherwise)")
    serve.add_argument(
        "--transport", choices=["stdio", "http", "sse"], help="http and sse serve both kinds on one port (stdio)"
    )
    serve.add_argument(
        "--host", help="address to bind to; beyond loopback it takes a token and --allowed-host (127.0.0.1)"
    )
    serve.add_argument("--port", type=whole_number(0, 65535), help="port to bind to; 0 lets the system choose (8765)")
    for flag, name, metavar, effect in (
        ("--allowed-host", "allowed_hosts", "NAME", "let clients reach the server by this name (loopback alone)"),
        ("--allowed-origin", "allowed_origins", "ORIGIN", "let web pages of this origin call the server (none)"),
        ("--allow-model", "allowed_models", "PATTERN", "load only models like 'HuggingFaceTB/*' (any)"),
    ):
        serve.add_argument(flag, action="append", dest=name, metavar=metavar, help=f"{effect}; may be given again")
    serve.add_argument(
        "--tools",
        type=lambda names: tuple(name.strip() for name in names.split(",")),
        metavar="NAMES",
        help="serve only these groups (reading, causal, training) or tools, with commas, and the basics (all)",
    )
    serve.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="folder for converted weights (the platform's cache folder)"
    )
    serve.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="folder for named vectors, and for runs unless --runs is given (the platform's data folder)",
    )
    serve.add_argument("--runs", type=Path, metavar="FOLDER", help="folder for runs ('runs' in that of --data)")
    serve.add_argument(
        "--reply-within",
        type=positive_seconds,
        metavar="SECONDS",
        help="after this a call answers with its run and continues (45)",
    )
    serve.add_argument(
        "--folder",
        type=Path,
        action="append",
        dest="folders",
        metavar="FOLDER",
        help="let calls read files and load models below this folder (none); may be given again",
    )
    serve.add_argument(
        "--trust-remote-code", action="store_true", default=None, help="let models run code of their own (off)"
    )
    serve.add_argument(
        "--ndif",
        dest="ndif_host",
        nargs="?",
        const="https://api.ndif.us",
        metavar="ADDRESS",
        help="let load_model use the NDIF service there, hosted by default; NDIF_API_KEY holds the key (off)",
    )
    serve.add_argument(
        "--neuronpedia",
        nargs="?",
        const="https://www.neuronpedia.org",
        metavar="ADDRESS",
        help="ask Neuronpedia for labels of features; NEURONPEDIA_API_KEY holds a key, if any (off)",
    )
    serve.add_argument(
        "--saelens-registry",
        nargs="?",
        const="https://raw.githubusercontent.com/decoderesearch/SAELens/main/sae_lens/pretrained_saes.yaml",
        metavar="FILE_OR_ADDRESS",
        help="read SAELens' registry there, by default at GitHub (that of an installed SAELens)",
    )
    serve.set_defaults(run=_serve)


def _serve(options: Namespace) -> None:
    from nnterp_mcp.server import transports

    transports.serve(settings_of(options))
