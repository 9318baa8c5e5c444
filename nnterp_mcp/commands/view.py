"""`nnterp-mcp view`: a run in the browser."""

from __future__ import annotations

import json
import secrets
import socket
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from nnterp_mcp.commands.flags import add_folders, add_json, add_run_id, settings_of, whole_number
from nnterp_mcp.commands.output import write_output
from nnterp_mcp.errors import InvalidRequest

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from argparse import _SubParsersAction as Commands  # pyright: ignore[reportPrivateUsage]

    from nnterp_mcp.runs.store import RunStore

_HOST = "127.0.0.1"


def add_view(commands: Commands[ArgumentParser]) -> None:
    """Adds the command to the parser of `nnterp-mcp`."""
    view = commands.add_parser("view", help="look at a run in the browser")
    add_run_id(view)
    view.add_argument("--no-browser", action="store_true", help="print the address and open no browser (off)")
    view.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="write one HTML file that holds the run, and end (serve it)"
    )
    view.add_argument(
        "--port", type=whole_number(0, 65535), default=0, help="port on this machine; 0 lets the system choose (0)"
    )
    add_folders(view)
    add_json(view)
    view.set_defaults(run=_view)


def _view(options: Namespace) -> None:
    from nnterp_mcp.pool.reading import read_answer
    from nnterp_mcp.runs.store import RunStore

    store = RunStore(settings_of(options).runs)
    read_answer(store, store.read(options.run_id))  # what cannot be shown is refused here, not in the browser
    if options.out is not None:
        _write(store, options)
    else:
        _serve(store, options)


def _write(store: RunStore, options: Namespace) -> None:
    from nnterp_mcp.viewer.page import page_with
    from nnterp_mcp.viewer.snapshot import snapshot

    data, left = snapshot(store, options.run_id)
    if left:
        print(left, file=sys.stderr)
    write_output(options.out, page_with(data))
    print(json.dumps({"run_id": options.run_id, "file": str(options.out)}) if "json" in options else options.out)


def _serve(store: RunStore, options: Namespace) -> None:
    import uvicorn

    from nnterp_mcp.server.loopback import viewer_app

    secret = secrets.token_urlsafe(16)
    try:
        listener = socket.create_server((_HOST, options.port))
    except OSError as error:
        raise InvalidRequest(f"port {options.port} of {_HOST} cannot be opened: {error}.", "Choose another.") from None
    address = f"http://{_HOST}:{listener.getsockname()[1]}/{secret}/"
    said = f"{options.run_id} is at {address} until this command ends (Ctrl-C)."
    print(json.dumps({"run_id": options.run_id, "address": address}) if "json" in options else said, flush=True)
    if not options.no_browser:
        webbrowser.open(address)
    app = viewer_app(store, options.run_id, secret)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)).run(sockets=[listener])
