"""`nnterp-mcp fetch`: a model's files, ahead of its first load."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from nnterp_mcp.commands.flags import add_json, settings_of

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from argparse import _SubParsersAction as Commands  # pyright: ignore[reportPrivateUsage]


def add_fetch(commands: Commands[ArgumentParser]) -> None:
    """Adds the command to the parser of `nnterp-mcp`."""
    fetch = commands.add_parser("fetch", help="download or convert a model, so that its first load is quick")
    fetch.add_argument(
        "model", nargs="?", default="smollm2-135m", help="built-in name, Hub id or .gguf file (smollm2-135m)"
    )
    fetch.add_argument("--revision", help="branch, tag or commit on the Hub (main)")
    add_json(fetch)
    fetch.set_defaults(run=_fetch)


def _fetch(options: Namespace) -> None:
    from nnterp_mcp.model.loading.locate import locate

    with redirect_stdout(sys.stderr):
        located = locate(options.model, options.revision, settings_of(options).cache, False, print)
    found = {"folder": str(located.folder), "origin": located.origin, "revision": located.revision}
    print(json.dumps(found) if "json" in options else located.folder)
