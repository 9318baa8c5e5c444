"""The Hub, played by a server of the test's own: revisions, progress, what is never asked for, what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.serving import environment, stdio, text

COMMIT, BRANCH = "a" * 40, "b" * 40
LOCATE = """
import json, sys
from pathlib import Path
from nnterp_mcp.errors import NnterpError
from nnterp_mcp.model.loading.locate import locate
answers = []
for name, revision in json.loads(sys.argv[1]):
    said = []
    try:
        found = locate(name, revision, Path("unused"), False, said.append)
        answer = {"folder": str(found.folder), "origin": found.origin, "revision": found.revision}
    except NnterpError as error:
        answer = {"code": error.code, "message": error.message, "next_step": error.next_step}
    answers.append(answer | {"said": said})
print(json.dumps(answers))
"""


@dataclass
class Hub:
    """A hub with one complete model, one of pickles, a gated one and one that fails."""

    folder: Path
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def revision(self, path: str) -> str:
        return BRANCH if BRANCH in path or "/old/" in f"{path}/" else COMMIT

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path; a model's API page, its list of files, or a file of it."""
        if "lab/gated" in path:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if "lab/broken" in path:
            return 500, {}, b"{}"
        if "lab/tiny" not in path and "lab/pickled" not in path:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if "/none" in path:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = ["config.json", "pytorch_model.bin"] if "lab/pickled" in path else self.files()
        if path.startswith("/api/"):
            listing = [{"rfilename": name} for name in files]
            tree = [
                {"type": "file", "path": name, "size": len(self.read(name)), "oid": self.tag(name)} for name in files
            ]
            page = tree if "/tree/" in path else {"id": "lab/tiny", "sha": self.revision(path), "siblings": listing}
            return 200, {"Content-Type": "application/json"}, json.dumps(page).encode()
        name = path.rsplit("/", 1)[-1]
        headers = {"ETag": f'"{self.tag(name)}"', "X-Repo-Commit": self.revision(path), "Accept-Ranges": "bytes"}
        return 200, headers, self.read(name)

    def files(self) -> list[str]:
        return [*sorted(file.name for file in self.folder.iterdir()), "pytorch_model.bin", "own.py", "weights.h5"]

    def read(self, name: str) -> bytes:
        file = self.folder / name
        return file.read_bytes() if file.exists() else b"never to be read"

    def tag(self, name: str) -> str:
        return hashlib.sha256(self.read(name)).hexdigest()[:40]

    def downloads(self) -> set[str]:
        return {path.rsplit("/", 1)[-1] for path in self.asked if "/resolve/" in path}


@pytest.fixture(scope="module")
def hub(tiny: Callable[..., Path]) -> Generator[Hub]:
    started = Hub(tiny("llama"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            started.asked.append(self.path)
            status, headers, body = started.answer(self.path.split("?")[0])
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:1000])
                if self.path.endswith(".safetensors"):
                    time.sleep(1.2)  # progress is told once a second
                self.wfile.write(body[1000:])

        do_HEAD = do_GET  # noqa: N815 - the name that the base class looks for

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    started.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield started
    server.shutdown()


def reaching(address: str, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def located(address: str, home: Path, *requests: tuple[str, str | None]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", LOCATE, json.dumps(requests)],
        env=environment(**reaching(address, home)),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_a_model_is_downloaded_once_and_found_again_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.asked.clear()
    whole, old = located(hub.address, tmp_path, ("lab/tiny", None), ("lab/tiny", "old"))
    folder = Path(whole["folder"])
    weights, original = load_file(folder / "model.safetensors"), load_file(hub.folder / "model.safetensors")

    assert (whole["origin"], whole["revision"]) == ("the Hub's lab/tiny", COMMIT)
    assert old["revision"] == BRANCH
    assert whole["said"][:2] == ["asking the Hub for lab/tiny", "downloading lab/tiny"]
    assert any(message.startswith("downloaded ") and message.endswith(" kB") for message in whole["said"])
    assert all(torch.equal(weights[name], original[name]) for name in original)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= hub.downloads()
    assert not {name for name in hub.downloads() if name.endswith((".bin", ".py", ".h5"))}

    (cached,) = located("http://127.0.0.1:9", tmp_path, ("lab/tiny", None))
    assert cached["folder"] == str(folder)
    assert (cached["origin"], cached["revision"]) == ("the Hub's lab/tiny (cached)", COMMIT)


def test_what_the_hub_refuses(hub: Hub, tmp_path: Path) -> None:
    hub.asked.clear()
    names = ["lab/gated", "lab/missing", "lab/broken", "lab/pickled"]
    refused = located(hub.address, tmp_path, *((name, None) for name in names), ("lab/tiny", "none"))

    assert [(answer["code"], answer["message"]) for answer in refused] == [
        ("forbidden", "lab/gated is gated on the Hub"),
        ("unknown_model", "the Hub has no model 'lab/missing' (or a private one)"),
        ("unknown_model", "'lab/broken' is not on this machine and the Hub cannot be reached (HfHubHTTPError)"),
        ("forbidden", "lab/pickled has its weights only as pickle (pytorch_model.bin), which can run code"),
        ("unknown_model", "lab/tiny has no revision 'none' on the Hub"),
    ]
    assert hub.downloads() == set()


def test_a_client_sees_the_download(hub: Hub, tmp_path: Path) -> None:
    said: list[tuple[float, str | None]] = []
    with stdio(**reaching(hub.address, tmp_path)) as client:
        loading = client.begin(
            "load_model", lambda done, total, message: said.append((done, message)), model="lab/tiny"
        )
        result = loading.result(120)

    assert not result.is_error, text(result)
    card = result.structured_content["card"]
    assert (result.structured_content["model"], card["source"], card["revision"]) == (
        "tiny",
        "the Hub's lab/tiny",
        COMMIT,
    )
    assert f"from the Hub's lab/tiny at {COMMIT}" in text(result)
    assert [message for _, message in said][1:3] == ["asking the Hub for lab/tiny", "downloading lab/tiny"]
    assert [done for done, _ in said] == sorted({done for done, _ in said})
