from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from nnterp_mcp import __version__
from tests.serving import environment


def run(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nnterp_mcp", *arguments],
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refusal(*arguments: str, **settings: object) -> str:
    done = run(*arguments, **settings)
    assert done.returncode == 2
    assert done.stdout == ""
    return done.stderr


def test_version() -> None:
    assert run("--version").stdout == f"nnterp-mcp {__version__}\n"


def test_help_names_the_commands() -> None:
    help_ = run("--help").stdout

    assert "serve" in help_
    assert "demo" in help_


def test_a_command_is_needed() -> None:
    assert "COMMAND" in refusal()


@pytest.mark.parametrize("host", ["0.0.0.0", "example.org"])
def test_only_loopback_is_bound(host: str) -> None:
    assert refusal("serve", "--transport", "http", "--host", host) == (
        f"forbidden: the server binds to loopback addresses only, not '{host}'\nUse one of 127.0.0.1, localhost, ::1.\n"
    )


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal("serve", "--transport", "http", "--port", str(port))

    assert said == (
        f"invalid_request: port {port} of 127.0.0.1 cannot be opened: Address already in use\n"
        "Choose another with --port; 0 lets the system choose.\n"
    )


def test_a_setting_that_makes_no_sense_is_named() -> None:
    assert "invalid_request: port: Input should be less than or equal to 65535\n" in refusal("serve", "--port", "70000")
    assert "invalid_request: max_models: Input should be a valid integer" in refusal("serve", max_models="many")


def test_a_server_without_a_client_ends_well() -> None:
    done = run("serve")

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.smollm2
@pytest.mark.parametrize(
    "transport", ["stdio", *(pytest.param(name, marks=pytest.mark.slow) for name in ("http", "sse"))]
)
def test_demo(transport: str, smollm2_folder: object) -> None:
    done = run("demo", "--transport", transport)

    assert done.returncode == 0, done.stderr
    assert f"connected over {transport}: " in done.stdout
    assert 'After " is" (position 4), smollm2-135m says " Paris" (0.77' in done.stdout
    assert "still loaded: nothing" in done.stdout
