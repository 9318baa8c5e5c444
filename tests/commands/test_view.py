"""`nnterp-mcp view`: a run in the browser, and as a file."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.viewer.page import page, page_with, policy
from nnterp_mcp.viewer.snapshot import snapshot
from tests.serving import environment
from tests.test_boundary import loaded_by
from tests.test_cli import refusal, run
from tests.viewer.kept import lens_run


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


@contextmanager
def viewed(store: RunStore, run_id: str) -> Generator[str]:
    """The address at which the command shows a run."""
    command = [sys.executable, "-m", "nnterp_mcp", "view", run_id, "--no-browser", "--runs", str(store.folder)]
    process = subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{22}/", process.stdout.readline())
        assert found
        yield found.group()
    finally:
        process.terminate()
        process.wait(10)


def test_a_run_is_served(store: RunStore) -> None:
    kept = lens_run(store, ["a", " b"])
    with viewed(store, kept.id) as address, httpx2.Client(base_url=address) as client:
        shown = client.get("")
        assert shown.text == page("server")
        assert shown.headers["content-security-policy"] == f"{policy('server')}; frame-ancestors 'none'"
        assert shown.headers["cache-control"] == "no-store"

        answer = client.post("read_run", json={"part": "readings.layers", "where": {"position": 1}, "format": "json"})
        assert answer.json()["structuredContent"]["total"] == 2
        other = client.post("read_run", json={"part": "answer", "run_id": lens_run(store, ["c"]).id})
        assert other.json()["structuredContent"]["run_id"] == kept.id  # this run alone
        wrong = client.post("read_run", json={"part": "nothing"}).json()
        assert wrong["isError"]
        assert "has no part 'nothing'" in wrong["content"][0]["text"]
        assert client.post("read_run", json=[1]).json()["isError"]
        assert client.post("read_run", content=b"{", headers={"content-type": "application/json"}).json()["isError"]


def test_only_who_knows_the_path_and_the_name_gets_in(store: RunStore) -> None:
    with viewed(store, lens_run(store, ["a"]).id) as address:
        root = httpx2.URL(address).join("/")
        assert httpx2.get(root).status_code == 404
        assert httpx2.get(root.join("/guessed/")).status_code == 404
        assert httpx2.post(root.join("/guessed/read_run"), json={}).status_code == 404
        assert httpx2.get(address, headers={"host": "evil.example"}).status_code == 421
        assert httpx2.post(f"{address}read_run", json={}, headers={"origin": "http://evil.example"}).status_code == 403
        assert httpx2.post(f"{address}read_run", content=b" " * 200_000).status_code in (400, 413)


def test_a_run_is_written_to_one_file(store: RunStore, tmp_path: Path) -> None:
    kept, file = lens_run(store, ["a", "\u2028</script>"]), tmp_path / "run.html"

    done = run("view", kept.id, "--out", str(file), "--runs", str(store.folder))

    assert (done.returncode, done.stdout) == (0, f"{file}\n")
    assert file.read_text(encoding="utf-8") == page_with(snapshot(store, kept.id)[0])


def test_what_cannot_be_shown_is_refused(store: RunStore, tmp_path: Path) -> None:
    folder = ["--runs", str(store.folder)]
    kept = lens_run(store, ["a"])

    assert "there is no run 'logit_lens-aaaaaa'" in refusal("view", "logit_lens-aaaaaa", "--no-browser", *folder)
    assert "cannot be written" in refusal("view", kept.id, "--out", str(tmp_path / "none" / "x.html"), *folder)
    assert "--port: '-1' is not a whole number" in refusal("view", kept.id, "--no-browser", "--port", "-1", *folder)


def test_looking_needs_no_torch() -> None:
    assert loaded_by("import nnterp_mcp.commands.view, nnterp_mcp.server.loopback, nnterp_mcp.viewer.snapshot") == []
