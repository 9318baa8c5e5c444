"""The store of named vectors: names, whole writes, provenance without numbers, and whose vector it is."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from nnterp_mcp.errors import Forbidden, InvalidRequest
from nnterp_mcp.request.access import allowed_file
from nnterp_mcp.request.vectors import ModelIdentity, VectorCard, check_name
from nnterp_mcp.runs.vectors import VectorStore

LLAMA = ModelIdentity(architecture="LlamaForCausalLM", hidden_size=4, fingerprint="aaaa")
OTHER = ModelIdentity(architecture="LlamaForCausalLM", hidden_size=4, fingerprint="bbbb")
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def card(name: str = "joy", identity: ModelIdentity = LLAMA, **changes: Any) -> VectorCard:
    fields: dict[str, Any] = {
        "name": name,
        "model": "tiny",
        "identity": identity,
        "method": "mean_difference",
        "layers": [3, 5],
        "norms": [1.0, 2.0],
        "request": {"positive": ["so happy"], "negative": ["so sad"], "positions": ["last"]},
        "versions": {"torch": "2"},
        "made": "2026-01-01T00:00:00+00:00",
    }
    return VectorCard.model_validate(fields | changes)


@pytest.fixture
def store(tmp_path: Path) -> VectorStore:
    return VectorStore(tmp_path / "vectors")


def test_a_vector_survives_the_store(store: VectorStore, tmp_path: Path) -> None:
    assert store.save(card(), ROWS) is None
    again = VectorStore(tmp_path / "vectors").load("joy", LLAMA, "tiny")

    assert again.card == card()
    assert np.array_equal(again.directions, ROWS)
    (path,) = (tmp_path / "vectors").rglob("*.*")
    assert path.name == "joy.safetensors"
    assert list(load_file(path)) == ["directions"]


def test_a_name_is_taken_over_and_said_so(store: VectorStore) -> None:
    store.save(card(), ROWS)
    replaced = store.save(card(made="2026-01-02T00:00:00+00:00"), ROWS + 1)

    assert replaced == card()
    assert np.array_equal(store.load("joy", LLAMA, "tiny").directions, ROWS + 1)
    assert len(store.cards()) == 1


def test_names_that_differ_in_capitals_only_are_refused(store: VectorStore) -> None:
    store.save(card(), ROWS)

    with pytest.raises(InvalidRequest, match="'Joy' differs only in capitals from the vector 'joy'"):
        store.save(card("Joy"), ROWS)


def test_a_vector_of_other_weights_is_refused_with_the_reason(store: VectorStore) -> None:
    store.save(card(), ROWS)

    with pytest.raises(InvalidRequest) as refusal:
        store.load("joy", OTHER, "tuned")
    assert refusal.value.message == (
        "the vector 'joy' does not belong to tuned (LlamaForCausalLM, width 4, weights bbbb): it was made on tiny "
        "(LlamaForCausalLM, width 4, weights aaaa), and means nothing to other weights."
    )
    store.save(card(identity=OTHER), ROWS)
    assert store.load("joy", OTHER, "tuned").card.identity == OTHER


def test_an_unknown_vector_names_the_known_ones(store: VectorStore) -> None:
    with pytest.raises(InvalidRequest, match="tiny has no vector 'grief': it has none"):
        store.find("grief", LLAMA, "tiny")
    store.save(card(), ROWS)
    store.save(card("calm"), ROWS)
    with pytest.raises(InvalidRequest, match="tiny has no vector 'grief': its vectors are calm, joy"):
        store.find("grief", LLAMA, "tiny")


def test_a_deleted_vector_is_gone(store: VectorStore, tmp_path: Path) -> None:
    store.save(card(), ROWS)

    assert store.delete("joy", LLAMA, "tiny") == card()
    assert not list((tmp_path / "vectors").rglob("*.*"))
    with pytest.raises(InvalidRequest):
        store.delete("joy", LLAMA, "tiny")


def test_cards_are_listed_newest_first(store: VectorStore) -> None:
    store.save(card("old"), ROWS)
    store.save(card("new", OTHER, made="2026-01-02T00:00:00+00:00"), ROWS)

    assert [listed.name for listed in store.cards()] == ["new", "old"]
    assert [listed.name for listed in store.cards(LLAMA)] == ["old"]


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}", b"\x04\0\0\0\0\0\0\0null"])
def test_a_damaged_file_is_passed_over_and_named(store: VectorStore, tmp_path: Path, content: bytes) -> None:
    store.save(card(), ROWS)
    (path,) = (tmp_path / "vectors").rglob("*.*")
    path.write_bytes(content)

    assert store.cards() == []
    with pytest.raises(InvalidRequest, match="the file of the vector 'joy' is damaged"):
        store.load("joy", LLAMA, "tiny")
    assert store.save(card(), ROWS) is None
    assert store.cards() == [card()]


def test_a_failed_write_leaves_the_old_vector(
    store: VectorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(card(), ROWS)

    def fail(*arguments: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        store.save(card(), ROWS + 1)
    assert np.array_equal(store.load("joy", LLAMA, "tiny").directions, ROWS)
    assert [path.name for path in (tmp_path / "vectors").rglob("*.*")] == ["joy.safetensors"]


def test_writers_at_the_same_time_leave_one_whole_vector(store: VectorStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda value: store.save(card(), np.full((2, 4), value, np.float32)), range(40)))

    directions = store.load("joy", LLAMA, "tiny").directions
    assert len(set(directions.flatten().tolist())) == 1


@given(st.text(max_size=80))
def test_a_name_is_never_a_path(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        return
    path = Path("/vectors") / f"{name}.safetensors"
    assert path.parent == Path("/vectors")
    assert 0 < len(name) <= 64
    assert name.isascii()
    assert not set(name) & set("/\\:~ \n\0")


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True).filter(lambda name: len(name) > 4))
def test_sensible_names_are_taken(name: str) -> None:
    if name.split(".")[0].lower()[:3] not in ("con", "prn", "aux", "nul", "com", "lpt"):
        assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".joy", "-joy", "a/b", "a\\b", "../joy", "joy ", "jöy", "a" * 65, "CON", "nul.x"]
)
def test_other_names_are_refused(store: VectorStore, name: str) -> None:
    with pytest.raises(ValueError, match="a name has 1 to 64 letters"):
        check_name(name)
    with pytest.raises(InvalidRequest, match="a name has 1 to 64 letters"):
        store.load(name, LLAMA, "tiny")


def test_reading_cards_needs_no_torch(store: VectorStore, tmp_path: Path) -> None:
    store.save(card(), ROWS)
    code = (
        "import sys; from pathlib import Path; from nnterp_mcp.runs.vectors import VectorStore; "
        f"print(VectorStore(Path({str(tmp_path / 'vectors')!r})).cards()[0].name); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split("\n")[:2] == ["joy", "[]"]


def test_files_are_read_below_allowed_folders_only(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "numbers.json").write_text("[1]")
    (inside / "link.json").symlink_to(outside / "numbers.json")

    for name in ("numbers.json", str(inside / "numbers.json"), "../inside/numbers.json"):
        assert allowed_file(name, [inside]) == (inside / "numbers.json").resolve()
    for name in (str(outside / "numbers.json"), "../outside/numbers.json", "link.json", "/etc/hostname"):
        with pytest.raises(Forbidden, match="lies outside of the folders"):
            allowed_file(name, [inside])
    with pytest.raises(Forbidden, match=r"\(none\)"):
        allowed_file("numbers.json", [])
    with pytest.raises(InvalidRequest, match=r"there is no file 'missing\.json'"):
        allowed_file("missing.json", [outside, inside])
