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
    assert all(command in help_ for command in ("runs", "replay", "export", "install", "connect"))


def test_a_command_is_needed() -> None:
    assert "COMMAND" in refusal()


TOKEN_STEP = "Set NNTERP_MCP_TOKEN to at least 16 random characters."
HOSTS_STEP = "Say with --allowed-host under which names clients reach the server."


@pytest.mark.parametrize(
    ("flags", "settings", "missing", "steps"),
    [
        ([], {}, "a token, allowed hosts", f"{TOKEN_STEP} {HOSTS_STEP}"),
        (["--allowed-host", "example.org"], {}, "a token", TOKEN_STEP),
        ([], {"token": "0123456789abcdef"}, "allowed hosts", HOSTS_STEP),
    ],
)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org", "127.0.0.2"])
def test_beyond_loopback_a_token_and_hosts_are_needed(
    host: str, flags: list[str], settings: dict[str, str], missing: str, steps: str
) -> None:
    assert refusal("serve", "--transport", "http", "--host", host, *flags, **settings) == (
        f"forbidden: the server binds to '{host}', beyond loopback (127.0.0.1, localhost, ::1), only with a token and "
        f"allowed hosts; without: {missing}\n{steps}\n"
    )


def test_the_token_is_no_flag_and_its_value_is_not_shown() -> None:
    assert "unrecognized arguments: --token" in refusal("serve", "--token", "0123456789abcdef")
    said = refusal("serve", token="too short")
    assert said.startswith("invalid_request: token: ")
    assert "too short" not in said


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal("serve", "--transport", "http", "--port", str(port))

    assert said == (
        f"invalid_request: port {port} of 127.0.0.1 cannot be opened: Address already in use\n"
        "Choose another with --port; 0 lets the system choose.\n"
    )


def test_a_setting_that_makes_no_sense_is_named() -> None:
    assert "invalid_request: port: Input should be less than or equal to 65535\n" in refusal("serve", port="70000")
    assert "invalid_request: reply_within: Input should be greater than 0\n" in refusal("serve", reply_within="0")
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
    assert 'After " is" (position 4), smollm2-135m predicts " Paris" (0.77' in done.stdout
    assert "still loaded: nothing" in done.stdout


@pytest.mark.parametrize("transport", ["stdio", "http", pytest.param("sse", marks=pytest.mark.slow)])
def test_the_demo_runs_in_the_environment_that_it_has(transport: str) -> None:
    done = run("demo", "--transport", transport, allowed_models='["nothing"]', token="a-token-of-this-test-0123")

    assert "> session" in done.stdout or "> load_model" in done.stdout, done.stderr
    assert "forbidden: " in done.stdout
    assert done.returncode == 1


def test_who_reads_no_more_ends_a_command_quietly() -> None:
    command = [sys.executable, "-m", "nnterp_mcp", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read().decode()

    assert "Traceback" not in said
