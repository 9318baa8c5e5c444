"""`nnterp-mcp view`: a run in the browser."""

from __future__ import annotations

import secrets
import socket
import sys
import webbrowser
from argparse import SUPPRESS
from pathlib import Path
from typing import TYPE_CHECKING

from nnterp_mcp.errors import InvalidRequest

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from argparse import _SubParsersAction as Commands  # pyright: ignore[reportPrivateUsage]

    from nnterp_mcp.runs.store import RunStore

_HOST = "127.0.0.1"


def add_view(commands: Commands[ArgumentParser]) -> None:
    """Adds the command to the parser of `nnterp-mcp`."""
    view = commands.add_parser("view", help="look at a run in the browser")
    view.add_argument("run_id", metavar="RUN", help="the run's id")
    view.add_argument("--no-browser", action="store_true", help="only print the address")
    view.add_argument("-o", "--out", type=Path, metavar="FILE", help="write one HTML file that holds the run, and end")
    view.add_argument("--port", type=int, default=0, help="port on this machine; 0 lets the system choose (0)")
    for flag, effect in (("--runs", "folder of the runs"), ("--data", "folder of the runs' parent")):
        view.add_argument(flag, type=Path, default=SUPPRESS, help=effect)
    view.set_defaults(run=_view)


def _view(options: Namespace) -> None:
    from nnterp_mcp.pool.reading import read_answer
    from nnterp_mcp.runs.store import RunStore
    from nnterp_mcp.settings import Settings

    store = RunStore(
        Settings(**{name: value for name in ("runs", "data") if (value := getattr(options, name, None))}).runs
    )
    read_answer(store, store.read(options.run_id))  # what cannot be shown is refused here, not in the browser
    if options.out is not None:
        _write(store, options.run_id, options.out)
    else:
        _serve(store, options)


def _write(store: RunStore, run_id: str, file: Path) -> None:
    from nnterp_mcp.viewer.page import page_with
    from nnterp_mcp.viewer.snapshot import snapshot

    data, left = snapshot(store, run_id)
    if left:
        print(left, file=sys.stderr)
    try:
        file.write_text(page_with(data), encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be written: {error.strerror}.") from None
    print(file)


def _serve(store: RunStore, options: Namespace) -> None:
    import uvicorn

    from nnterp_mcp.server.loopback import viewer_app

    secret = secrets.token_urlsafe(16)
    try:
        listener = socket.create_server((_HOST, options.port))
    except (OSError, OverflowError) as error:
        raise InvalidRequest(f"port {options.port} of {_HOST} cannot be opened: {error}.", "Choose another.") from None
    address = f"http://{_HOST}:{listener.getsockname()[1]}/{secret}/"
    print(f"{options.run_id} is at {address} until this command ends (Ctrl-C).", flush=True)
    if not options.no_browser:
        webbrowser.open(address)
    app = viewer_app(store, options.run_id, secret)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)).run(sockets=[listener])
