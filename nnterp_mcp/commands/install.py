"""`nnterp-mcp install`: adds this server to a client's configuration."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from nnterp_mcp.commands import jsonc
from nnterp_mcp.commands.connect import endpoint
from nnterp_mcp.commands.flags import add_json
from nnterp_mcp.errors import Forbidden, InvalidRequest

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from argparse import _SubParsersAction as Commands  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True)
class Client:
    """The format of a client's configuration.

    Attributes:
        title: Its name.
        file: The configuration file.
        section: The object in it that has the servers by name.
        typed: True if entries state their transport under `type`.
        variable: The syntax of environment variables in headers; None if it speaks no HTTP, and needs a bridge.
        then: The next step for a person.
    """

    title: str
    file: Path
    section: str
    typed: bool
    variable: str | None
    then: str


def clients() -> dict[str, Client]:
    """Every client that is known, under its name on the command line."""
    claude, code = (Path(platformdirs.user_config_dir(name, False, roaming=True)) for name in ("Claude", "Code"))
    return {
        "claude-desktop": Client(
            title="Claude Desktop",
            file=claude / "claude_desktop_config.json",
            section="mcpServers",
            typed=False,
            variable=None,
            then="Quit Claude Desktop, and start it.",
        ),
        "claude-code": Client(
            title="Claude Code",
            file=Path.cwd() / ".mcp.json",
            section="mcpServers",
            typed=True,
            variable="${%s}",
            then="Start claude in this folder, and approve the server.",
        ),
        "cursor": Client(
            title="Cursor",
            file=Path.home() / ".cursor" / "mcp.json",
            section="mcpServers",
            typed=False,
            variable="${env:%s}",
            then="Enable the server in Cursor's settings, under MCP.",
        ),
        "vscode": Client(
            title="VS Code",
            file=code / "User" / "mcp.json",
            section="servers",
            typed=True,
            variable="${env:%s}",
            then="Run 'MCP: List Servers' from the command palette, and start it.",
        ),
    }


_TRANSPORT = ("type", "command", "args", "url", "headers")
"""Fields of an entry that say how to reach a server; all others are the user's."""


def add_install(commands: Commands[ArgumentParser]) -> None:
    """Adds the command to the parser of `nnterp-mcp`."""
    install = commands.add_parser("install", help="make this server known to a client, or print how")
    install.add_argument("client", choices=list(clients()), help="the client whose configuration to change")
    install.add_argument("--dry-run", action="store_true", help="print what would be written, and where (off)")
    install.add_argument("--url", help="a server that listens on HTTP (one that the client starts)")
    install.add_argument(
        "--token-env", metavar="VAR", help="variable of the environment that holds that server's token (none)"
    )
    install.add_argument("--name", default="nnterp", help="the server's name in the client (nnterp)")
    install.add_argument("--file", type=Path, help="the configuration to change (where the client keeps it)")
    add_json(install)
    install.set_defaults(run=_install)


def entry(client: Client, url: str | None = None, token_variable: str | None = None) -> dict[str, Any]:
    """A server's entry in a client's configuration; of a token it has only the variable's name."""
    if url is not None and client.variable is not None:
        bearer = {"headers": {"Authorization": f"Bearer {client.variable % token_variable}"}} if token_variable else {}
        return ({"type": "http"} if client.typed else {}) | {"url": endpoint(url)} | bearer
    bridge = ["connect", endpoint(url)] if url is not None else ["serve"]
    variable = ["--token-env", token_variable] if token_variable else []
    command, *arguments = [*own_command(), *bridge, *variable]
    return ({"type": "stdio"} if client.typed else {}) | {"command": command, "args": arguments}


def own_command() -> list[str]:
    """The command that starts this installation, with its full path, since clients do not know the shell's."""
    script = Path(sys.executable).with_name("nnterp-mcp.exe" if os.name == "nt" else "nnterp-mcp")
    return [str(script)] if script.exists() else [sys.executable, "-m", "nnterp_mcp"]


def merged(before: object, ours: Mapping[str, Any]) -> dict[str, Any]:
    """An existing entry with our transport; its other fields are the user's and stay."""
    there: dict[str, Any] = before if isinstance(before, dict) else {}
    kept = {name: value for name, value in there.items() if name in ours or name not in _TRANSPORT}
    return kept | dict(ours)


def write(path: Path, text: str) -> Path | None:
    """Replaces a file atomically, through links and with its permissions, and backs up the old content.

    Returns:
        The backup; None if there was no file.

    Raises:
        Forbidden: It cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        backup = _free(target) if target.exists() else None
        if backup is not None:
            _replace(backup, target.read_bytes(), target)
        _replace(target, text.encode(), target)
    except OSError as error:
        raise Forbidden(f"{target} cannot be written: {error.strerror}", "Paste the entry (--dry-run).") from None
    return backup


def _free(target: Path) -> Path:
    names = (target.with_name(f"{target.name}.{number}.bak") for number in range(1, 1 << 30))
    return next(path for path in names if not path.exists())


def _replace(path: Path, content: bytes, like: Path) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if like.exists():
            shutil.copymode(like, name)
        os.replace(name, path)  # noqa: PTH105 - a name, not a path
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _install(options: Namespace) -> None:
    client = clients()[options.client]
    path = options.file or client.file
    if options.token_env and not options.url:
        raise InvalidRequest("--token-env belongs to --url: a server that the client starts needs no token.")
    ours = entry(client, options.url, options.token_env)
    before = _read(path)
    added = {client.section: {options.name: ours}}
    block = json.dumps(added, indent=2, ensure_ascii=False)
    try:
        text = jsonc.put(before, client.section, options.name, merged(_there(before, client, options.name), ours))
    except (jsonc.Malformed, jsonc.Commented) as error:
        raise InvalidRequest(f"{path} was left as it is: {error}.", f"Put this into it by hand:\n{block}") from None
    backup = write(path, text) if text != before and not options.dry_run else None
    if "json" in options:
        print(json.dumps({"file": str(path), "backup": backup and str(backup), "added": added}))
    elif options.dry_run:
        print(f"{path}\n{block}")
    elif text == before:
        print(f"{client.title} knows {options.name} already: {path}")
    else:
        print(f"{options.name} is in {path}" + (f"; what it held before is in {backup}" if backup else ""))
        print(client.then)
    _advise(options, client, ours)


def _advise(options: Namespace, client: Client, ours: Mapping[str, Any]) -> None:
    if options.client == "claude-code" and not options.token_env:
        how = (
            ["--transport", "http", options.name, ours["url"]] if options.url else [options.name, "--", ours["command"]]
        )
        added = shlex.join(["claude", "mcp", "add", "--scope", "user", *how, *ours.get("args", [])])
        print(f"For every folder instead: {added}", file=sys.stderr)
    if options.token_env and client.variable is None:
        example = json.dumps({"env": {options.token_env: "…"}}, ensure_ascii=False)
        print(
            f"{client.title} passes no variables of the shell on: put the token into the entry: {example}",
            file=sys.stderr,
        )
    elif options.token_env:
        print(f"{client.title} must find the token in the variable {options.token_env}.", file=sys.stderr)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}.", "Name another with --file.") from None


def _there(text: str, client: Client, name: str) -> object:
    section = jsonc.parse(text).get(client.section) if text.strip() else None
    return section.get(name) if isinstance(section, dict) else None
