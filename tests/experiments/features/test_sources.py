from __future__ import annotations

from pathlib import Path

import pytest

from nnterp_mcp.errors import Forbidden, InvalidRequest, Unsupported
from nnterp_mcp.experiments.features.dictionary import Dictionary
from nnterp_mcp.experiments.features.registry import find_registered, installed_registry
from nnterp_mcp.experiments.features.shelf import Shelf
from nnterp_mcp.experiments.features.sources import choose_files
from nnterp_mcp.request.access import admit_dictionary
from tests.experiments.features.layouts import random
from tests.model.families import standardized

REPOSITORY = [
    "README.md",
    "config.yaml",
    *(f"layer_{layer}/width_16k/average_l0_{count}/params.npz" for layer in range(26) for count in (10, 20, 30)),
]


def test_only_what_is_wanted_of_a_repository_is_downloaded() -> None:
    inner = "layer_2/width_16k/average_l0_20"

    assert choose_files(REPOSITORY, f"a/b/{inner}", inner, None) == [f"{inner}/params.npz"]
    assert len(choose_files(REPOSITORY, "a/b", "", [3, 4])) == 7
    with pytest.raises(InvalidRequest, match="78 files of tensors, and 64 are downloaded together"):
        choose_files(REPOSITORY, "a/b", "", None)
    with pytest.raises(InvalidRequest, match="has no files of tensors"):
        choose_files(REPOSITORY, "a/b/c", "c", None)


def test_folders_are_those_that_the_server_allows(tmp_path: Path) -> None:
    (tmp_path / "given" / "one").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    folders = [tmp_path / "given"]

    assert admit_dictionary(str(tmp_path / "given" / "one"), ["*"], folders) == tmp_path / "given" / "one"
    assert admit_dictionary("one", ["*"], folders) == tmp_path / "given" / "one"
    assert admit_dictionary("google/gemma-scope-2b-pt-res/layer_20", ["google/*"], folders) is None
    with pytest.raises(Forbidden, match="outside of the folders"):
        admit_dictionary(str(tmp_path / "other"), ["*"], folders)
    with pytest.raises(Forbidden, match="outside of the folders"):
        admit_dictionary("../other", ["*"], folders)
    with pytest.raises(Forbidden, match="does not load"):
        admit_dictionary("google/gemma-scope-2b-pt-res/layer_20", ["somebody/*"], [])
    (tmp_path / "given" / "one" / "link").symlink_to(tmp_path / "other")
    with pytest.raises(Forbidden, match="is a link that leads outside"):
        admit_dictionary("one", ["*"], folders)


def test_dictionaries_are_read_once_and_those_of_a_name_are_dropped_together() -> None:
    model, shelf, read = standardized("llama", "sdpa"), Shelf(), [0]

    def load() -> Dictionary:
        read[0] += 1
        return Dictionary(random(5, 64), random(5, 64), random(5), random(64))

    first = shelf.take(("a", 1), model, load)
    assert shelf.take(("a", 1), model, load) is first
    shelf.take(("b", 1), model, load)
    shelf.drop("a")
    assert (read[0], shelf.nbytes) == (2, first.nbytes)


REGISTRY = """
tiny-res:
  repo_id: somebody/dictionaries
  saes:
  - id: layer_3/width_16k
    path: res/layer_3
  - id: layer_4
    path: sets/layer_4.safetensors
    neuronpedia: tiny/4-res
"""


def test_releases_of_saelens_are_addresses_on_the_hub(tmp_path: Path) -> None:
    registry = tmp_path / "pretrained_saes.yaml"
    registry.write_text(REGISTRY)

    assert (
        find_registered("saelens:tiny-res/layer_3/width_16k", registry).address == "somebody/dictionaries/res/layer_3"
    )
    assert find_registered("saelens:tiny-res/layer_4", registry) == (
        "somebody/dictionaries/sets/layer_4.safetensors",
        "tiny/4-res",
    )
    with pytest.raises(InvalidRequest, match="no release 'tiny': it has 1, such as tiny-res"):
        find_registered("saelens:tiny/layer_4", registry)
    with pytest.raises(InvalidRequest, match="has no dictionary 'layer_5': it has 2, such as layer_4"):
        find_registered("saelens:tiny-res/layer_5", registry)
    registry = tmp_path / "damaged.yaml"
    registry.write_text("a: [")
    with pytest.raises(Unsupported, match="cannot be read"):
        find_registered("saelens:a/b", registry)


def test_without_saelens_its_releases_are_refused() -> None:
    with pytest.raises(Unsupported, match="SAELens is not installed"):
        installed_registry()
