from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nnterp_mcp.server.identity import HOMEPAGE
from nnterp_mcp.toolset import specs

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "docs" / "library.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_tool_reference_is_current():
    command = [sys.executable, str(ROOT / "tools" / "reference.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run: python tools/reference.py"


def test_the_library_s_reference_is_current():
    pytest.importorskip("griffe")
    command = [sys.executable, str(ROOT / "tools" / "api_reference.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run: python tools/api_reference.py"


def test_every_promise_of_safety_names_a_test_that_exists():
    files = {path.name: path.read_text() for path in ROOT.glob("tests/**/test_*.py")}
    file, found = "", 0
    for said, test in re.findall(r"`(?:(?:\w+/)?(test_\w+\.py)|…)::(test_\w+)`", (ROOT / "SECURITY.md").read_text()):
        file, found = said or file, found + 1
        assert f"def {test}(" in files[file], f"{file}::{test}"
    assert found > 20


def test_the_readme_lists_every_tool():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "README.md").read_text().split("\n## Tools\n")[1], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == specs().keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path):
    said = page.read_text()
    ours = re.findall(rf"{HOMEPAGE}/(?:blob|tree)/main/([^)#\s]+)", said)
    links = [*re.findall(r"\]\((?!https?:)([^)#]+)", said), *(ROOT / link for link in ours)]

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_page_that_an_index_shows_has_no_relative_link():
    assert re.findall(r"\]\((?!https?:|#)([^)]+)", (ROOT / "README.md").read_text()) == []


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.smollm2
def test_the_library_s_snippets_run(tmp_path: Path):
    assert len(snippets(LIBRARY)) >= 12
    command = [sys.executable, "-W", "error:::nnterp_mcp", "-c", "\n".join(snippets(LIBRARY))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'smollm2-135m predicts " Paris" (0.773)' in done.stdout
    assert (tmp_path / "lens.png").stat().st_size > 10_000


@pytest.mark.slow
def test_snippets_pass_a_type_checker(tmp_path: Path):
    methods = ROOT / "docs" / "methods"
    pages = (ROOT / "README.md", methods / "fitted-lenses.md", methods / "circuits.md")
    blocks = [block for page in pages for block in snippets(page)]
    for number, block in enumerate([*blocks, "\n".join(snippets(LIBRARY))]):
        (tmp_path / f"snippet_{number}.py").write_text(block)
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_page_is_listed():
    listed = (ROOT / "docs" / "README.md").read_text()

    assert [page.name for page in PAGES if page.parent != ROOT and f"{page.stem}.md)" not in listed] == ["README.md"]
