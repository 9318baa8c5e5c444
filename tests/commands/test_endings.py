"""How commands end: interrupted, with a closed pipe, with numbers that are not allowed; and what their help says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from argparse import SUPPRESS, ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnterp_mcp.cli import main
from nnterp_mcp.commands.output import write_output
from nnterp_mcp.commands.parser import build_parser
from nnterp_mcp.settings import Settings
from tests.recorded import Recorded
from tests.serving import environment
from tests.test_cli import run

AWAY = "http://127.0.0.1:1"
LONG = (
    "serve",
    "serve --transport http --port 0",
    f"connect {AWAY}",
    "demo",
    "check gpt2",
    "check --all-types --jobs 1",
)


@pytest.mark.parametrize("moment", [0.3, 1.0])
def test_an_interrupted_command_says_so_in_one_line(moment: float, tmp_path: Path) -> None:
    """During the imports, and at work. A terminal sends the signal to the whole process group.

    Before the command's first line runs, Python itself reports the interruption.
    """
    started = {
        command: subprocess.Popen(
            [sys.executable, "-m", "nnterp_mcp", *command.split()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(data=tmp_path),
            start_new_session=True,
        )
        for command in LONG
    }
    time.sleep(moment)
    for process in started.values():
        os.killpg(process.pid, signal.SIGINT)

    for command, process in started.items():
        _, said = process.communicate(timeout=60)
        lines = [line for line in said.splitlines() if not line.startswith(("no server answers", "  …"))]
        if moment < 1 and "run_process()" not in said and "interrupted" not in said:
            continue
        assert (process.returncode, lines) == (130, ["interrupted"]), (command, said)


def test_a_closed_pipe_ends_a_command_quietly(recorded: Recorded) -> None:
    data = f"--data {recorded.settings.data}"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "nnterp_mcp", *command.split()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        for command in ("--help", f"runs {data}", f"runs show {recorded.ids['lens']} {data}", "completion bash")
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.close()
    for process in started:
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(60)) == (b"", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nnterp_mcp", "completion", "bash"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(data=tmp_path), check=False
        )
    assert (done.returncode, done.stderr) == (2, "error: No space left on device.\n")


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    old = tmp_path / "run.py"
    old.write_text("old")
    limited = (
        "import resource, sys; from pathlib import Path; from nnterp_mcp.commands.output import write_output\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); write_output(Path(sys.argv[1]), 'new ' * 1000)"
    )
    done = subprocess.run([sys.executable, "-c", limited, str(old)], capture_output=True, text=True, check=False)

    assert done.stderr.strip().endswith("run.py cannot be written: File too large.")
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["run.py"]
    write_output(old, "new")
    assert old.read_text() == "new"


def test_connect_to_a_server_that_is_away_says_so_and_ends_with_its_input() -> None:
    done = run("connect", AWAY)

    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        f"no server answers at {AWAY}/mcp (All connection attempts failed): requests are refused until one does\n"
    )


NUMBERS = {
    "serve --port": "a whole number from 0 to 65535",
    "serve --reply-within": "a number of seconds above 0, up to 1000000",
    "check --jobs": "a whole number from 1 to 256",
    "runs --limit": "a whole number from 1 to 1000000",
    "runs show RUN --limit": "a whole number from 1 to 500",
    "runs show RUN --offset": "a whole number from 0 to 1000000000",
    "replay RUN --tolerance": "a number from 0 to 1",
    "view RUN --port": "a whole number from 0 to 65535",
}
"""What each flag that takes a number allows."""


@pytest.mark.parametrize("flag", NUMBERS)
def test_a_number_that_is_not_allowed_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("-1", "nan", "inf", "1e999", "9" * 5000, "many", ""):
        with pytest.raises(SystemExit) as ended:
            main([*flag.split(), value])

        assert ended.value.code == 2
        out, said = capsys.readouterr()
        assert out == ""
        assert said.splitlines()[-1].endswith(f"argument {flag.split()[-1]}: {value[:40]!r} is not {NUMBERS[flag]}")


def commands(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for below in action.choices.values():
                yield from commands(below)


def test_every_number_is_checked() -> None:
    flags = {
        f"{parser.prog.removeprefix('nnterp-mcp ')} {action.option_strings[0]}"
        for parser in commands(build_parser())
        for action in parser._actions
        if isinstance(action.default, int | float) and not isinstance(action.default, bool)
    }
    assert flags <= {flag.replace(" RUN", "") for flag in NUMBERS}


def test_every_flag_has_help_with_its_default() -> None:
    for parser in commands(build_parser()):
        for action in parser._actions:
            assert action.help or isinstance(action, _SubParsersAction), (parser.prog, action.dest)
            if action.option_strings and action.dest not in ("help", "version", "json", "all_types", "part"):
                assert str(action.help).removesuffix("; may be given again").endswith(")"), (parser.prog, action.help)
            default = action.default
            if parser.prog.endswith(" serve") and action.dest in Settings.model_fields:
                default = Settings.model_fields[action.dest].default
            if isinstance(default, str | float) and default != SUPPRESS and not isinstance(default, bool):
                assert f"({default:g})" if isinstance(default, float) else f"({default})" in action.help


def test_a_shell_completes_commands_and_runs(recorded: Recorded) -> None:
    pytest.importorskip("argcomplete")

    def completed(line: str) -> list[str]:
        asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": "/dev/stdout", "_ARGCOMPLETE_IFS": "\n"}
        asked |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
        return run(**asked, data=recorded.settings.data).stdout.split()

    assert completed("nnterp-mcp re") == ["replay"]
    assert completed("nnterp-mcp replay logit_l") == [recorded.ids["lens"]]


def test_what_is_to_be_parsed_is_one_json_document(recorded: Recorded, tmp_path: Path) -> None:
    run_id, data = recorded.ids["lens"], ["--data", str(recorded.settings.data)]
    page = ["view", run_id, "--out", str(tmp_path / "run.html"), *data]
    client = ["install", "cursor", "--dry-run", "--file", str(tmp_path / "mcp.json")]
    part = ["runs", "show", run_id, "--part", "readings.layers", "--limit", "2", *data]
    told = [json.loads(run(*command, "--json").stdout) for command in (page, client, part)]

    assert told[0] == {"run_id": run_id, "file": str(tmp_path / "run.html")}
    assert told[1]["added"]["mcpServers"]["nnterp"]["args"] == ["serve"]
    assert (told[2]["total"], len(told[2]["rows"]), told[2]["rows"][1]["layer"]) == (16, 2, 1)
