"""Builds everything that a release would publish, checks it and publishes nothing: `make release-check`.

    python tools/release.py            # in a fresh environment with the tested versions, torch included
    python tools/release.py --quick    # the dependencies come from this environment

The files lie in dist/ afterwards: sdist, wheel, and the bundle where Node is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

from generated import SCRIPTS, stale
from project import PROJECT, ROOT

DIST = ROOT / "dist"
PLACE = ROOT / "build" / "release"
HANDSHAKE = [
    {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "release", "version": "0"},
        },
    },
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
]


def run(*command: str | Path, cwd: Path = ROOT, given: str = "") -> str:
    """Runs a command; its output if it ends well. Away from the repository, its environment names no other packages.

    Raises:
        SystemExit: It fails; its output is the message.
    """
    apart = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" or cwd == ROOT}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, input=given, env=apart, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def make_environment(name: str, *packages: str) -> Path:
    """The `bin` folder of a new virtual environment with some packages."""
    folder = PLACE / name
    venv.create(folder, clear=True, with_pip=True)
    bin_ = folder / ("Scripts" if sys.platform == "win32" else "bin")
    if packages:
        run(bin_ / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
    return bin_


def check_versions() -> str:
    """The version, where every file that states it agrees.

    Raises:
        SystemExit: A file states another one.
    """
    version = str(PROJECT["version"])
    stated = {
        "nnterp_mcp/__init__.py": r'^__version__ = "(.+)"',
        "CITATION.cff": r"^version: (.+)",
        "server.json": r'^  "version": "(.+)"',
        "bundle/manifest.json": r'^  "version": "(.+)"',
        "plugin/.claude-plugin/plugin.json": r'"version": "(.+)"',
    }
    for file, pattern in stated.items():
        found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        if found is None or found[1] != version:
            raise SystemExit(f"{file} states the version {found and found[1]}, and pyproject.toml {version}")
    return version


def check_generated() -> str:
    """Compares every generated file.

    Raises:
        SystemExit: One is not current.
    """
    if failed := stale("--check"):
        raise SystemExit(f"not current: {', '.join(failed)}; run `make generated`")
    return f"{len(SCRIPTS)} scripts"


def build() -> str:
    """Builds sdist and wheel, has their metadata checked, and compares their files with the repository's.

    Raises:
        SystemExit: One cannot be built, or lacks a file or has one too many.
    """
    shutil.rmtree(DIST, ignore_errors=True)
    bin_ = make_environment("build", "build", "twine")
    run(bin_ / "python", "-m", "build", "--outdir", DIST)
    run(bin_ / "python", "-m", "twine", "check", "--strict", *sorted(DIST.iterdir()))
    tracked = set(run("git", "ls-files").split("\n")) - {""}
    wheel, sdist = next(DIST.glob("*.whl")), next(DIST.glob("*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    compare("wheel", packed, {path for path in tracked if path.startswith("nnterp_mcp/")})
    with tarfile.open(sdist) as archive:
        unpacked = {name.partition("/")[2] for name in archive.getnames()}
    compare("sdist", unpacked - {"PKG-INFO", ".gitignore"}, {path for path in tracked if not path.startswith(".")})
    return ", ".join(f"{path.name} ({path.stat().st_size / 1e6:.1f} MB)" for path in (wheel, sdist))


def compare(what: str, found: set[str], wanted: set[str]) -> None:
    """Compares the files of an archive with those under version control.

    Raises:
        SystemExit: They differ.
    """
    if found != wanted:
        raise SystemExit(
            f"{what} lacks {sorted(wanted - found)[:10]}, and has in addition {sorted(found - wanted)[:10]}"
        )


def start_installed(quick: bool) -> str:
    """Installs the wheel in a new environment and starts its server, away from the repository.

    Raises:
        SystemExit: It cannot be installed, or its server does not answer.
    """
    wheel = next(DIST.glob("*.whl"))
    if quick:
        bin_ = make_environment("installed", "--no-deps", str(wheel))
        site = run(bin_ / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    else:
        bin_ = make_environment("installed", "-c", str(ROOT / "constraints.txt"), str(wheel))
    version = run(bin_ / "nnterp-mcp", "--version", cwd=PLACE).strip()
    lines = "".join(json.dumps(message) + "\n" for message in HANDSHAKE)
    answers = [json.loads(line) for line in run(bin_ / "nnterp-mcp", "serve", cwd=PLACE, given=lines).splitlines()]
    tools = next(answer["result"]["tools"] for answer in answers if answer.get("id") == 1)
    where = run(bin_ / "python", "-c", "import nnterp_mcp; print(nnterp_mcp.__file__)", cwd=PLACE).strip()
    if not Path(where).is_relative_to(PLACE):
        raise SystemExit(f"the server was started from {where}, not from the wheel")
    return f"{version}, {len(tools)} tools"


def pack_bundle() -> str:
    """Packs the bundle by its format's own tool."""
    if shutil.which("npx") is None:
        return "skipped: Node is not installed"
    run(sys.executable, "tools/bundle.py", "--pack", DIST / "nnterp-mcp.mcpb")
    return "dist/nnterp-mcp.mcpb"


def main() -> int:
    """Runs every step, and stops at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="take the dependencies from this environment (off)")
    quick: bool = parser.parse_args().quick
    PLACE.mkdir(parents=True, exist_ok=True)
    steps: dict[str, Callable[[], str]] = {
        "versions agree": check_versions,
        "generated files are current": check_generated,
        "sdist and wheel": build,
        "the wheel's server answers": lambda: start_installed(quick),
        "bundle": pack_bundle,
    }
    for title, step in steps.items():
        print(f"{title}: {step()}", flush=True)
    print("Nothing was published. docs/releasing.md lists what remains.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
