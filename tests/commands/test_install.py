from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving import environment, stdio

CLIENTS = ("claude-desktop", "claude-code", "cursor", "vscode")
SECTION = {"vscode": "servers"}


def install(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as someone whose home is a folder of the test."""
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "nnterp_mcp", "install", *arguments],
        env=environment(HOME=home, XDG_CONFIG_HOME=home / ".config"),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def place(home: Path, client: str) -> Path:
    """Where a client keeps its servers on Linux."""
    return (
        home
        / {
            "claude-desktop": ".config/Claude/claude_desktop_config.json",
            "claude-code": ".mcp.json",
            "cursor": ".cursor/mcp.json",
            "vscode": ".config/Code/User/mcp.json",
        }[client]
    )


def entry(path: Path, client: str, name: str = "nnterp") -> dict[str, Any]:
    return json.loads(path.read_text())[SECTION.get(client, "mcpServers")][name]


@pytest.mark.parametrize("client", CLIENTS)
def test_what_is_installed_starts_a_server(client: str, tmp_path: Path) -> None:
    done = install(tmp_path, client)
    assert done.returncode == 0, done.stderr
    written = entry(place(tmp_path, client), client)
    again = install(tmp_path, client)

    assert done.stdout.startswith(f"nnterp is in {place(tmp_path, client)}\n")
    assert Path(written["command"]).is_absolute()
    assert written.get("type") == ("stdio" if client in ("claude-code", "vscode") else None)
    assert "knows nnterp already" in again.stdout
    assert [path.name for path in place(tmp_path, client).parent.iterdir() if "bak" in path.name] == []
    with stdio([written["command"], *written["args"]], PATH="/nowhere") as caller:
        assert "load_model" in {tool.name for tool in caller.tools()}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_dry_run_says_the_same_and_writes_nothing(client: str, tmp_path: Path) -> None:
    dry = install(tmp_path, client, "--dry-run", "--name", "lab")
    path, block = dry.stdout.split("\n", 1)
    assert not any(tmp_path.iterdir())
    install(tmp_path, client, "--name", "lab")

    assert path == str(place(tmp_path, client))
    assert json.loads(block) == json.loads(place(tmp_path, client).read_text())


def test_a_server_that_listens_elsewhere(tmp_path: Path) -> None:
    flags = ("--url", "https://lab.example.org", "--token-env", "LAB_TOKEN")
    for client in CLIENTS:
        assert install(tmp_path, client, *flags).returncode == 0
    desktop, code, cursor, vscode = (entry(place(tmp_path, client), client) for client in CLIENTS)

    assert desktop["args"] == ["connect", "https://lab.example.org/mcp", "--token-env", "LAB_TOKEN"]
    assert cursor == {
        "url": "https://lab.example.org/mcp",
        "headers": {"Authorization": "Bearer ${env:LAB_TOKEN}"},
    }
    assert vscode == {"type": "http", **cursor}
    assert code == {**vscode, "headers": {"Authorization": "Bearer ${LAB_TOKEN}"}}


def test_what_is_the_users_stays(tmp_path: Path) -> None:
    path = place(tmp_path, "cursor")
    path.parent.mkdir()
    before = (
        '{\n  // mine\n  "mcpServers": {"git": {"command": "git-mcp"}},\n'
        '  "nnterp": 1, /* not a server */\n  "theme": "dark",\n}\n'
    )
    path.write_text(before)
    path.chmod(0o640)
    done = install(tmp_path, "cursor")
    after = path.read_text()

    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert after.startswith('{\n  // mine\n  "mcpServers": {"git": {"command": "git-mcp"},\n    "nnterp": {')
    assert after.endswith('},\n  "nnterp": 1, /* not a server */\n  "theme": "dark",\n}\n')
    kept = path.with_name("mcp.json.1.bak")
    assert f"what it held before is in {kept}" in done.stdout
    assert kept.read_text() == before
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640


def test_an_entry_is_changed_and_its_other_keys_stay(tmp_path: Path) -> None:
    path = place(tmp_path, "claude-desktop")
    path.parent.mkdir(parents=True)
    there = {"env": {"HF_TOKEN": "mine"}, "command": "old", "args": ["serve"], "disabled": True}
    path.write_text(json.dumps({"mcpServers": {"nnterp": there}, "scale": 1.50}))
    install(tmp_path, "claude-desktop", "--url", "http://127.0.0.1:8765")

    after = entry(path, "claude-desktop")
    assert list(after) == list(there)
    assert after["env"] == there["env"]
    assert after["args"] == ["connect", "http://127.0.0.1:8765/mcp"]

    install(tmp_path, "claude-desktop")
    assert entry(path, "claude-desktop")["args"] == ["serve"]
    assert len(list(path.parent.iterdir())) == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"mcpServers": ', "it is no JSON"),
        ("[]", "it holds a list, not an object"),
        ('{"mcpServers": []}', "'mcpServers' in it is no object"),
        (
            '{"mcpServers": {"nnterp": {"command": "x" /* mine */}}}',
            "'nnterp' in it holds comments, which would be lost",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_text_to_paste(text: str, why: str, tmp_path: Path) -> None:
    path = place(tmp_path, "claude-code")
    path.write_text(text)
    done = install(tmp_path, "claude-code")

    assert done.returncode == 2
    assert done.stderr.startswith(f"invalid_request: {path} was left as it is: ")
    assert why in done.stderr
    assert json.loads(done.stderr.split("by hand:\n", 1)[1])["mcpServers"]["nnterp"]["args"] == ["serve"]
    assert path.read_text() == text
    assert [*tmp_path.iterdir()] == [path]


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = place(tmp_path, "claude-code")
    path.write_bytes(b'{"a": "\xff"}')

    assert f"{path} cannot be read: " in install(tmp_path, "claude-code").stderr
    assert path.read_bytes() == b'{"a": "\xff"}'


def test_a_link_is_followed(tmp_path: Path) -> None:
    kept = tmp_path / "dotfiles" / "mcp.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    place(tmp_path, "cursor").parent.mkdir()
    place(tmp_path, "cursor").symlink_to(kept)
    install(tmp_path, "cursor")

    assert place(tmp_path, "cursor").is_symlink()
    assert "nnterp" in json.loads(kept.read_text())["mcpServers"]


def test_another_file_can_be_named(tmp_path: Path) -> None:
    file = tmp_path / "insiders.json"
    install(tmp_path, "vscode", "--file", str(file))

    assert entry(file, "vscode")["type"] == "stdio"


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    done = install(tmp_path, "vscode", "--file", "/proc/mcp.json")

    assert done.stderr.startswith("forbidden: /proc/mcp.json cannot be written: ")


def test_the_readme_shows_what_is_installed(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text()
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", readme, re.DOTALL)]

    def printed(client: str, *flags: str) -> dict[str, Any]:
        block = json.loads(install(tmp_path, client, "--dry-run", *flags).stdout.split("\n", 1)[1])
        (server,) = block[SECTION.get(client, "mcpServers")].values()
        if "command" in server:
            server["command"] = "/home/me/.venv/bin/nnterp-mcp"
        return block

    assert printed("cursor") == printed("claude-desktop")
    assert blocks[:3] == [
        printed("claude-desktop"),
        printed("vscode"),
        printed("cursor", "--url", "http://127.0.0.1:8765/mcp"),
    ]
    assert printed("vscode", "--url", "http://127.0.0.1:8765/mcp") == blocks[3]
    code = printed("claude-code")["mcpServers"]["nnterp"]
    assert f"claude mcp add --scope user nnterp -- {code['command']} {' '.join(code['args'])}\n" in readme


def test_a_token_without_a_url_makes_no_sense(tmp_path: Path) -> None:
    assert "--token-env belongs to --url" in install(tmp_path, "cursor", "--token-env", "LAB_TOKEN").stderr
