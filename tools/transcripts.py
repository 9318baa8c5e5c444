"""Fills in what calls answer: in the pages of docs/methods, and in examples/*.out what each example prints.

A page shows calls in fenced blocks, `> tool {arguments}`, each with the answer of a real server on smollm2-135m below
it. What is written already stays where it says the same, numbers within rounding.

    python tools/transcripts.py [NAME…]
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

ROOT = Path(__file__).parent.parent
METHODS = ROOT / "docs" / "methods"
EXAMPLES = ROOT / "examples"

Ask = Callable[[str, dict[str, Any]], Awaitable[str]]

_FENCE = re.compile(r"(?<=^```text\n)> .*?(?=^```$)", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"^> (\w+) (?=\{)", re.MULTILINE)
_PASSING = (
    (re.compile(r"\b([a-z_]+)-[a-z2-7]{6}\b"), r"\1-RUN"),
    (re.compile(r"\b(?:\d+ min )?[\d.]+ m?s\b"), "TIME"),
    (re.compile(r"\b[\d.,]+ (\w+) a second\b"), r"RATE \1 a second"),
    (re.compile(", at an earlier load of the same files"), ""),
)
"""Text that differs from run to run: ids of runs, seconds, speeds, and whether the model was loaded before."""

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w])")
_NOISE = 1e-4
"""What is as small and written as a power of ten may be a rounding error, which differs between machines."""


def methods() -> list[Path]:
    """The pages whose answers are filled in."""
    return sorted(METHODS.glob("*.md"))


def examples() -> list[Path]:
    """The scripts that are run, without what they share."""
    return sorted(path for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


def same(written: str, said: str) -> bool:
    """Whether two texts say the same: equal words, whole numbers, and others up to one in their last digit."""
    for pattern, name in _PASSING:
        written, said = pattern.sub(name, written), pattern.sub(name, said)
    if _NUMBER.sub("#", written) != _NUMBER.sub("#", said):
        return False
    return all(map(_close, _NUMBER.findall(written), _NUMBER.findall(said)))


def _close(written: str, said: str) -> bool:
    difference = abs(float(written) - float(said))
    return difference <= max(_last_digit(written), _last_digit(said)) * 1.001


def _last_digit(number: str) -> float:
    """The worth of a number's last digit; 0 for a whole number, which counts something."""
    digits, _, power = number.partition("e")
    decimals = len(digits.partition(".")[2])
    if power:
        return max(_NOISE if abs(float(number)) < _NOISE else 0.0, 10.0 ** (int(power) - decimals))
    return 10.0**-decimals if decimals else 0.0


async def retell(page: str, ask: Ask) -> str:
    """A page with its calls made again."""
    told: list[str] = []
    for fence in _FENCE.findall(page):
        calls: list[str] = []
        for call in _CALL.finditer(fence):
            arguments, end = json.JSONDecoder().raw_decode(fence, call.end())
            calls.append(f"{fence[call.start() : end]}\n{await ask(call[1], arguments)}\n")
        told.append("\n".join(calls))
    answers = iter(told)
    return _FENCE.sub(lambda _: next(answers), page)


async def retell_pages(paths: Iterable[Path]) -> dict[Path, str]:
    """Pages with their calls made again, on one server."""
    with tempfile.TemporaryDirectory() as data:
        command = ["-m", "nnterp_mcp", "serve", "--reply-within", "3600"]
        environment = {**os.environ, "NNTERP_MCP_DATA": data}
        server = StdioServerParameters(command=sys.executable, args=command, env=environment)
        async with Client(stdio_client(server)) as client:

            async def ask(tool: str, arguments: dict[str, Any]) -> str:
                result: Any = await client.call_tool(tool, arguments)
                return result.content[0].text

            await ask("load_model", {"model": "smollm2-135m"})
            return {path: await retell(path.read_text(encoding="utf-8"), ask) for path in paths}


def run_example(path: Path) -> str:
    """What an example prints, with runs and vectors in a folder of its own.

    Raises:
        CalledProcessError: It failed.
    """
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, str(path)]
        environment = {**os.environ, "NNTERP_MCP_DATA": data}
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    """Renews the pages and outputs whose names are given, or all."""
    chosen = set(sys.argv[1:])
    pages = [path for path in methods() if not chosen or path.stem in chosen]
    told = anyio.run(retell_pages, pages) if pages else {}
    for path, said in told.items():
        _keep(path, said)
    for path in examples():
        if not chosen or path.stem in chosen:
            _keep(path.with_suffix(".out"), run_example(path))


def _keep(path: Path, said: str) -> None:
    if not path.exists() or not same(path.read_text(encoding="utf-8"), said):
        path.write_text(said, encoding="utf-8")
        print(f"{path.relative_to(ROOT)} is renewed")


if __name__ == "__main__":
    main()
