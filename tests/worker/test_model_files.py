"""The hashes of a model's files against hashlib's, in folders and in the Hub's cache."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nnterp_mcp.runs.records import FileCard
from nnterp_mcp.worker.model_files import ModelFiles


def hashed(files: ModelFiles) -> dict[str, FileCard]:
    files.wait()
    return files.cards()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_each_file_has_its_size_and_hash(contents: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for count, content in enumerate(contents):
            (Path(folder) / f"model-{count}.safetensors").write_bytes(content)
        (Path(folder) / "config.json").write_text("{}")
        (Path(folder) / "README.md").write_text("not read by a model")
        cards = hashed(ModelFiles(Path(folder)))

    assert set(cards) == {"config.json", *(f"model-{count}.safetensors" for count in range(len(contents)))}
    for count, content in enumerate(contents):
        card = cards[f"model-{count}.safetensors"]
        assert (card.bytes, card.sha256) == (len(content), sha256(content))


def test_of_a_gguf_file_only_that_counts(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    cards = hashed(ModelFiles(tmp_path, "a.gguf"))

    assert {name: card.sha256 for name, card in cards.items()} == {"a.gguf": sha256(b"weights")}


def cached(tmp_path: Path, content: bytes, blob: str) -> Path:
    """The folder of a snapshot as huggingface_hub lays it out: links to blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / blob).write_bytes(content)
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs") / blob)
    return snapshot


def test_the_hub_names_large_files_by_their_hash_and_they_are_not_read(tmp_path: Path) -> None:
    named = sha256(b"what the Hub says")
    snapshot = cached(tmp_path, b"some gigabytes", named)
    (card,) = hashed(ModelFiles(snapshot)).values()

    assert (card.bytes, card.sha256) == (len(b"some gigabytes"), named)


def test_the_hub_names_small_files_otherwise_and_they_are_read(tmp_path: Path) -> None:
    snapshot = cached(tmp_path, b"small", hashlib.sha1(b"blob 5\0small").hexdigest())
    (card,) = hashed(ModelFiles(snapshot)).values()

    assert card.sha256 == sha256(b"small")


def test_a_link_elsewhere_that_looks_like_a_hash_is_read(tmp_path: Path) -> None:
    (tmp_path / ("0" * 64)).write_bytes(b"content")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / ("0" * 64))
    (card,) = hashed(ModelFiles(tmp_path / "model")).values()

    assert card.sha256 == sha256(b"content")


@pytest.mark.parametrize("what", ["folder", "dangling"])
def test_what_cannot_be_read_has_no_hash_and_keeps_none_from_the_others(what: str, tmp_path: Path) -> None:
    if what == "folder":
        (tmp_path / "a.json").mkdir()
    else:
        (tmp_path / "a.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b.json").write_text("{}")
    cards = hashed(ModelFiles(tmp_path))

    assert cards["b.json"].sha256 == sha256(b"{}")
    assert "a.json" not in cards or cards["a.json"].sha256 is None


def test_nobody_waits_longer_than_they_say(tmp_path: Path) -> None:
    with (tmp_path / "large.safetensors").open("wb") as sink:
        sink.truncate(2_000_000_000)  # takes no room on the disk, and a second to hash
    cards = ModelFiles(tmp_path).cards()

    assert cards["large.safetensors"].bytes == 2_000_000_000
    assert cards["large.safetensors"].sha256 is None


@pytest.mark.parametrize("late", [False, True])
def test_what_waits_for_the_hashes_runs_once_they_are_there(late: bool, tmp_path: Path) -> None:
    with (tmp_path / "large.safetensors").open("wb") as sink:
        sink.truncate(100_000_000)
    files = ModelFiles(tmp_path)
    found: list[FileCard] = []
    done = threading.Event()
    if late:
        files.wait()

    def look() -> None:
        found.extend(files.cards().values())
        done.set()

    files.when_hashed(look)

    assert done.wait(60)
    assert [card.sha256 for card in found] == [sha256(bytes(100_000_000))]
