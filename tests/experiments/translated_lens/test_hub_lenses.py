"""Lenses from the Hub, played by a server of the test's own: what is downloaded, found again, and refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from nnterp_mcp.errors import Forbidden, InvalidRequest, UnknownModel
from nnterp_mcp.experiments.translated_lens.hub_lenses import choose_lens
from nnterp_mcp.worker.workbench import Bench
from tests.toolset.test_fit_lens import PROMPT, TEXTS, ask
from tests.toolset.test_make_vector import make_bench
from tests.web import Answer, serving, use_hub

COMMIT, OLD = "a" * 40, "b" * 40


@dataclass
class Hub:
    """A repository of lenses, and a space of them; both have one tree of files."""

    folder: Path
    asked: list[str] = field(default_factory=list)

    def files(self) -> dict[str, bytes]:
        every = (file for file in self.folder.rglob("*") if file.is_file())
        return {file.relative_to(self.folder).as_posix(): file.read_bytes() for file in every}

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        files = self.files()
        commit = OLD if OLD in path or path.endswith("/old") or "/old/" in path else COMMIT
        if "lab/lenses" not in path:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if path.startswith("/api/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha256(data).hexdigest()[:40]}
                for name, data in files.items()
            ]
            listing = [{"rfilename": name} for name in files]
            page: Any = tree if "/tree/" in path else {"id": "lab/lenses", "sha": commit, "siblings": listing}
            return 200, {"Content-Type": "application/json"}, json.dumps(page).encode()
        data = files[path.partition("/resolve/")[2].partition("/")[2]]
        return 200, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}, data


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path / "home")


@pytest.fixture
def hub(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    from nnterp_mcp import export_lens, save_lens
    from nnterp_mcp.worker.lenses import find_lens

    folder = tmp_path / "hub"
    (folder / "tiny" / "jlens").mkdir(parents=True)
    (folder / "tuned").mkdir()
    for method in ("jacobian", "tuned"):
        ask(bench, "fit_lens", name=method, method=method, prompts=TEXTS, skip_first=2)
    fitted = {method: found[0] for method in ("jacobian", "tuned") if (found := find_lens(bench, method))}
    export_lens(fitted["jacobian"], folder / "tiny" / "jlens" / "lens.pt")
    export_lens(fitted["tuned"], folder / "tuned")
    save_lens(fitted["jacobian"], folder / "own.safetensors")
    started = Hub(folder)

    def answer(path: str, headers: Message) -> Answer:
        started.asked.append(path)
        return started.answer(path.split("?")[0])

    with serving(answer) as address:
        use_hub(address, str(tmp_path / "cache"), monkeypatch)
        yield started


def test_lenses_are_read_from_the_hub_and_found_again_without_it(
    hub: Hub, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method, address in (
        ("jacobian", "lab/lenses/tiny"),
        ("jacobian", "lab/lenses/own.safetensors@old"),
        ("tuned", "lab/lenses/tuned/params.pt"),
        ("tuned", "spaces/lab/lenses/tuned"),
    ):
        hub.asked.clear()
        found = ask(bench, "logit_lens", prompts=PROMPT, lens=address)

        own = ask(bench, "logit_lens", prompts=PROMPT, lens=method)
        name, _, revision = address.partition("@")
        assert (found.fitted.name, found.fitted.method) == (name, method)
        assert found.fitted.revision == (OLD if revision else COMMIT)
        for layer, ours in zip(found.readings[0].layers, own.readings[0].layers, strict=True):
            assert layer.kl == pytest.approx(ours.kl, abs=5e-3)  # published Jacobians are in float16
        fetched = {path.partition("/resolve/")[2].rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
        assert (
            fetched
            == {
                "lab/lenses/tiny": {"lens.pt"},
                "lab/lenses/own.safetensors": {"own.safetensors"},
                "lab/lenses/tuned/params.pt": {"params.pt", "config.json"},
                "spaces/lab/lenses/tuned": {"params.pt", "config.json"},
            }[name]
        )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = ask(bench, "logit_lens", prompts=PROMPT, lens="lab/lenses/tiny")
    assert again.fitted.revision == COMMIT
    for away in ("lab/others/lens.pt", "lab/lenses/more/lens.pt"):
        with pytest.raises(UnknownModel, match="the Hub cannot be reached") as error:
            ask(bench, "logit_lens", prompts=PROMPT, lens=away)
        assert error.value.next_step == "Give a file or folder of this machine."


def test_what_the_hub_lacks_is_refused(hub: Hub, bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="lab/lenses has 3 files of lenses") as error:
        ask(bench, "logit_lens", prompts=PROMPT, lens="lab/lenses")
    assert "lab/lenses/tiny/jlens/lens.pt" in str(error.value.next_step)
    with pytest.raises(InvalidRequest, match="lab/lenses/none has no files of lenses"):
        ask(bench, "logit_lens", prompts=PROMPT, lens="lab/lenses/none")
    with pytest.raises(UnknownModel, match="no repository 'lab/others'"):
        ask(bench, "logit_lens", prompts=PROMPT, lens="lab/others/lens.pt")
    (hub.folder / "evil.pt").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(Forbidden, match="does not hold tensors alone"):
        ask(bench, "logit_lens", prompts=PROMPT, lens="lab/lenses/evil.pt")
    assert not any("/resolve/" in path and "evil" not in path for path in hub.asked)


def test_a_server_reads_only_allowed_repositories(tmp_path: Path) -> None:
    from nnterp_mcp.request.access import admit_lens

    with pytest.raises(Forbidden, match=r"does not load 'lab/lenses': it allows google/\*"):
        admit_lens("spaces/lab/lenses/tuned", ["google/*"], [tmp_path])
    assert admit_lens("google/lenses/lens.pt", ["google/*"], []) is None
    with pytest.raises(InvalidRequest, match="has 2 files of lenses"):
        choose_lens(["a/x.pt", "a/y.safetensors", "a/z.bin", "ab/x.pt"], "lab/lenses", "a")
