"""The tool that docs/adding-a-tool.md adds works as it stands there."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import environment

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "adding-a-tool.md"
FILES = ["__init__.py", "answer.py", "figure.py", "params.py", "result.py", "run.py", "test_surprisal.py"]
KEPT = ("conftest.py", "serving.py", "recorded.py", "__init__.py", "toolset/__init__.py")
"""What the page's test needs of the tests that there are."""


def blocks() -> dict[str, str]:
    """The files of the page by their paths, which stand in their first lines."""
    return dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project with the page's tool in it."""
    shutil.copytree(ROOT / "nnterp_mcp", tmp_path / "nnterp_mcp", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in KEPT:
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests" / name)
    for name, code in blocks().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    return tmp_path


def test_the_pages_code_is_clean(checkout: Path) -> None:
    assert sorted(Path(name).name for name in blocks()) == FILES
    for arguments in (("check",), ("format", "--check")):
        command = [sys.executable, "-m", "ruff", *arguments, *blocks()]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_what_the_pages_code_imports_is_there() -> None:
    imported = re.findall(r"^ *from (nnterp_mcp\.\S+) import (.+)$", "\n".join(blocks().values()), re.MULTILINE)
    for module, names in imported:
        if ".surprisal" not in module:
            found = importlib.import_module(module)
            assert [name for name in names.split(", ") if not hasattr(found, name)] == []


@pytest.mark.slow
def test_the_pages_test_passes_and_can_fail(checkout: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "tests/toolset/test_surprisal.py"]
    done = subprocess.run(command, cwd=checkout, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

    run = checkout / "nnterp_mcp" / "toolset" / "surprisal" / "run.py"
    run.write_text(run.read_text().replace("-float(", "2 - float("))
    done = subprocess.run(command, cwd=checkout, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
