"""The command line: `nnterp-mcp serve` and further commands."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnterp_mcp import __version__
from nnterp_mcp.commands import connect, install, runs, view
from nnterp_mcp.errors import InvalidRequest, NnterpError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except NnterpError as error:
        from nnterp_mcp.formatting import escaped

        print(escaped(f"{error.code}: {error.message}\n{error.next_step}".rstrip()), file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nnterp-mcp", description="A laboratory inside language models, over MCP.")
    parser.add_argument("--version", action="version", version=f"nnterp-mcp {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve MCP (on stdio unless told otherwise)")
    serve.add_argument(
        "--transport", choices=["stdio", "http", "sse"], help="http and sse serve both kinds on one port"
    )
    serve.add_argument("--host", help="address to bind to; beyond loopback it takes a token and --allowed-host")
    serve.add_argument("--port", type=int, help="port to bind to; 0 lets the system choose (8765)")
    for flag, name, metavar, effect in (
        ("--allowed-host", "allowed_hosts", "NAME", "let clients reach the server by this name"),
        ("--allowed-origin", "allowed_origins", "ORIGIN", "let web pages of this origin call the server"),
        ("--allow-model", "allowed_models", "PATTERN", "load only models like this, such as 'HuggingFaceTB/*'"),
    ):
        serve.add_argument(flag, action="append", dest=name, metavar=metavar, help=f"{effect}; may be given again")
    serve.add_argument(
        "--tools",
        type=lambda names: tuple(name.strip() for name in names.split(",")),
        metavar="NAMES",
        help="serve only these groups (reading, causal, training) or tools, with commas; basics are always served",
    )
    serve.add_argument("--cache", type=Path, help="folder for converted weights")
    serve.add_argument("--data", type=Path, help="folder for named vectors, and for runs unless --runs is given")
    serve.add_argument("--runs", type=Path, help="folder for runs")
    serve.add_argument(
        "--reply-within", type=float, metavar="SECONDS", help="after this a call answers with its run and goes on (45)"
    )
    serve.add_argument(
        "--folder",
        type=Path,
        action="append",
        dest="folders",
        metavar="FOLDER",
        help="let calls read files and load models below this folder; may be given again",
    )
    serve.add_argument(
        "--trust-remote-code", action="store_true", default=None, help="let models run code of their own"
    )
    serve.add_argument(
        "--ndif",
        dest="ndif_host",
        nargs="?",
        const="https://api.ndif.us",
        metavar="ADDRESS",
        help="let load_model use the NDIF service there (hosted by default); NDIF_API_KEY holds the key",
    )
    serve.set_defaults(run=_serve)

    demo = commands.add_parser("demo", help="start a server, connect a client and show a logit lens")
    demo.add_argument("--transport", choices=["stdio", "http", "sse"], default="stdio")
    demo.set_defaults(run=_demo)

    check = commands.add_parser("check", help="verify a model, or a tiny one of every architecture")
    check.add_argument("model", nargs="?", help="built-in name, Hub id, folder or .gguf file")
    check.add_argument("--all-types", action="store_true", help="every causal-LM type that transformers knows")
    check.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes for --all-types")
    check.add_argument("--json", action="store_true", help="print JSON instead of a table")
    check.add_argument("--trust-remote-code", action="store_true", help="let the model run code of its own")
    check.set_defaults(run=_check)

    fetch = commands.add_parser("fetch", help="download or convert a model, so that its first load is quick")
    fetch.add_argument("model", nargs="?", default="smollm2-135m")
    fetch.add_argument("--revision", help="branch, tag or commit on the Hub")
    fetch.set_defaults(run=_fetch)

    install.add_install(commands)
    connect.add_connect(commands)
    runs.add_runs(commands)
    view.add_view(commands)
    return parser


def _serve(options: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from nnterp_mcp.server.transports import serve
    from nnterp_mcp.settings import Settings

    flags = {name: getattr(options, name, None) for name in Settings.model_fields}
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
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


def _check(options: argparse.Namespace) -> int:
    """Prints the checks; the exit code is 1 if a number was wrong, or a model failed a check."""
    if options.all_types == (options.model is not None):
        raise InvalidRequest("check takes a model or --all-types.", "For instance: nnterp-mcp check smollm2-135m")
    return _check_all_types(options) if options.all_types else _check_model(options)


def _check_model(options: argparse.Namespace) -> int:
    from nnterp_mcp.formatting import finite
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.verification.census import to_json
    from nnterp_mcp.verification.full_checks import check_thoroughly

    model = StandardizedTransformer(options.model, check_renaming=False, trust_remote_code=options.trust_remote_code)
    report = check_thoroughly(model)
    if options.json:
        print(json.dumps(finite(to_json([report])[0])))
    else:
        print(f"{report.name}: {report.architecture}, {report.seconds:.1f} s")
        for check in report.checks:
            print(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.detail}")
    return int(not all(check.passed for check in report.checks))


def _check_all_types(options: argparse.Namespace) -> int:
    import time

    from nnterp_mcp.formatting import finite
    from nnterp_mcp.verification.census import check_all_types, render_table, to_json, totals, worst_lens

    begun = time.monotonic()
    reports = check_all_types(options.jobs, on_report=lambda report: print(report.name, end=" ", file=sys.stderr))
    print(file=sys.stderr)
    if options.json:
        print(json.dumps(finite({"totals": totals(reports), "types": to_json(reports)})))
    else:
        print(render_table(reports))
        print(f"{totals(reports)}")
        print(f"largest difference of a last layer's lens from the logits: {worst_lens(reports):.1e}")
        print(f"{time.monotonic() - begun:.0f} s")
    return int(totals(reports)["wrong"] > 0)


def _fetch(options: argparse.Namespace) -> int:
    from nnterp_mcp.model.loading.locate import locate
    from nnterp_mcp.settings import Settings

    located = locate(
        options.model, options.revision, Settings().cache, False, lambda message: print(message, file=sys.stderr)
    )
    print(located.folder)
    return 0
