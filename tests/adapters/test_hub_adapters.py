"""Adapters from the Hub, played by a server of the test's own: what is downloaded, found again, pinned and refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from nnterp_mcp import Laboratory
from nnterp_mcp.commands.reproduce.replay import replay
from nnterp_mcp.errors import Forbidden, InvalidRequest, UnknownModel
from nnterp_mcp.model.loading.adapter_files import locate_adapter
from nnterp_mcp.request.access import admit_adapter
from nnterp_mcp.request.adapter_folder import pinned, split_hub, split_scale
from nnterp_mcp.settings import Settings
from nnterp_mcp.verification.tiny import tiny_model
from tests.adapters import peft, write_adapter
from tests.serving import stdio, text
from tests.web import Answer, serving, use_hub

COMMIT, OLD = "a" * 40, "b" * 40
TEXT = "The capital of France is"


@dataclass
class Hub:
    """Three repositories: an adapter, one of pickles and one that holds none."""

    folder: Path
    address: str = ""
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        name = next((name for name in ("lab/pirate", "lab/pickled", "lab/model") if name in path), None)
        if name is None:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        commit = OLD if OLD in path or "/old/" in f"{path}/" else COMMIT
        kept = {file.name: file.read_bytes() for file in self.folder.iterdir()} | {"README.md": b"#", "own.py": b"1"}
        files = {
            "lab/pirate": kept,
            "lab/pickled": {"adapter_config.json": b"{}", "adapter_model.bin": b"never read"},
            "lab/model": {"config.json": b"{}", "model.safetensors": b"never read"},
        }[name]
        if path.startswith("/api/"):
            tree = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha256(data).hexdigest()[:40]}
                for file, data in files.items()
            ]
            listing = [{"rfilename": file} for file in files]
            page: Any = tree if "/tree/" in path else {"id": name, "sha": commit, "siblings": listing}
            return 200, {"Content-Type": "application/json"}, json.dumps(page).encode()
        data = files[path.rsplit("/", 1)[-1]]
        return 200, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}, data

    def downloads(self) -> set[str]:
        return {path.rsplit("/", 1)[-1] for path in self.asked if "/resolve/" in path}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    started = Hub(write_adapter(tiny_model("llama"), tmp_path / "pirate", target_modules=["down_proj"]))

    def answer(path: str, headers: Message) -> Answer:
        started.asked.append(path)
        return started.answer(path.split("?")[0])

    with serving(answer) as started.address:
        use_hub(started.address, str(tmp_path / "hub-cache"), monkeypatch)
        yield started


def silent(message: str) -> None:
    pass


def test_an_adapter_is_downloaded_once_and_found_again_without_the_hub(
    hub: Hub, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Laboratory(str(tiny("llama")), adapter="lab/pirate@old@0.5")
    assert hub.downloads() == {"adapter_config.json", "adapter_model.safetensors"}
    assert lab.bench.handle == "tiny-llama+pirate@0.5"
    assert lab.card.adapter_revision == lab.bench.environment.adapter_revision == OLD
    assert str(lab.card.adapter).endswith(f", scale 0.5, from the Hub's lab/pirate at {OLD}")
    reference = peft.PeftModel.from_pretrained(tiny_model("llama"), hub.folder).eval()
    for module in reference.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.5)
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        said, wanted = lab.bench.model.module(ids).logits, reference(ids).logits
    torch.testing.assert_close(said, wanted, rtol=1e-5, atol=1e-5)

    found = locate_adapter("lab/pirate", silent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate_adapter("lab/pirate", silent) == found
    assert found.revision == COMMIT
    with pytest.raises(UnknownModel, match="'lab/other' is not on this machine and the Hub cannot be reached"):
        locate_adapter("lab/other", silent)


def test_what_holds_no_safe_adapter_is_refused_before_anything_is_downloaded(hub: Hub) -> None:
    with pytest.raises(Forbidden, match=r"lab/pickled has its weights only as pickle \(adapter_model.bin\)"):
        locate_adapter("lab/pickled", silent)
    with pytest.raises(UnknownModel, match=r"lab/model holds no adapter: it has no adapter_config\.json"):
        locate_adapter("lab/model", silent)
    with pytest.raises(UnknownModel, match="the Hub has no repository 'lab/none'"):
        locate_adapter("lab/none", silent)
    assert hub.downloads() == set()


def test_addresses_are_told_from_paths(tmp_path: Path) -> None:
    assert split_scale("lab/pirate@main") == ("lab/pirate@main", 1.0)
    assert split_scale(f"lab/pirate@{COMMIT}@-2") == (f"lab/pirate@{COMMIT}", -2.0)
    assert split_hub("lab/pirate@refs/pr/1") == ("lab/pirate", "refs/pr/1")
    assert [split_hub(name) for name in ("pirate", "/lab/pirate", "./lab/pirate", "a/b/c", "~/pirate")] == [None] * 5
    assert pinned("lab/pirate@main@0.5", COMMIT) == f"lab/pirate@{COMMIT}@0.5"
    assert pinned("/lab/pirate@0.5", None) == "/lab/pirate@0.5"
    with pytest.raises(InvalidRequest, match="'main' after the @ is no scale"):
        split_scale("pirate@main")
    assert admit_adapter("lab/pirate@0.5", ["lab/*"], []) == "lab/pirate@0.5"
    with pytest.raises(Forbidden, match="this server does not load 'other/pirate': it allows lab/\\*"):
        admit_adapter("other/pirate", ["lab/*"], [])
    folder = write_adapter(tiny_model("llama"), tmp_path / "lab" / "pirate")
    assert admit_adapter("lab/pirate", ["*"], [tmp_path]) == str(folder)


@pytest.mark.slow
def test_a_run_is_replayed_with_the_commit_that_was_found(hub: Hub, tiny: Callable[..., Path], tmp_path: Path) -> None:
    reach = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    with stdio(data=str(tmp_path / "data"), **reach) as client:
        loaded = client.call("load_model", model=str(tiny("llama")), adapter="lab/pirate")
        lens = client.call("logit_lens", model="tiny-llama+pirate@0.5", prompts=TEXT)
        missing = client.call("load_model", model="tiny-llama", adapter="lab/none")
    assert f"from the Hub's lab/pirate at {COMMIT}" in text(loaded)
    assert text(missing).startswith("unknown_model: the Hub has no repository 'lab/none'")
    hub.asked.clear()
    found = replay(lens.structured_content["run_id"], Settings(data=tmp_path / "data"), 1e-5)
    assert found.equal
    assert found.environment == []
    assert any(COMMIT in path for path in hub.asked)
