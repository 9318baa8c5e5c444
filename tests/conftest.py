"""Models that the tests share: tiny random ones in folders, and the real default model."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

# Before the package: its shapes are checked here, and in every process that a test starts.
SHAPES = str(Path(__file__).parent / "shapes")
sys.path.insert(0, SHAPES)
importlib.import_module("shape_checks").install("nnterp_mcp")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SHAPES, os.environ.get("PYTHONPATH")]))

# Before nnsight, whose `.save` on every object breaks classes that are built later.
for name in ("mcp.client.sse", "mcp.client.stdio"):
    importlib.import_module(name)

if TYPE_CHECKING:
    from tests.recorded import Recorded
    from tests.serving import Caller

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

# Examples are the same in every run, and a slow machine is no fault of theirs.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("steady")

FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox")


def pytest_collection_finish() -> None:
    """Spares the garbage collector what lives as long as the session: libraries and thousands of cases."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a tiny model with its tokenizer; equal arguments give the same folder."""
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    root = tmp_path_factory.mktemp("models")

    def save(family: str, seed: int = 0) -> Path:
        folder = root / (f"tiny-{family}" if seed == 0 else f"tiny-{family}-seed-{seed}")
        if not folder.exists():
            tiny_model(family, seed=seed).save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def recorded(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Generator[Recorded]:
    """The runs that a server on a tiny model has recorded, one or more of every tool; tests must not change them."""
    from tests.recorded import record_examples

    with record_examples(tiny("llama"), tmp_path_factory.mktemp("recorded")) as made:
        yield made


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The default model, converted; no test is skipped for want of it, since it is part of the setup."""
    from nnterp_mcp.model.loading.locate import locate
    from nnterp_mcp.model.loading.locations import BUILTIN
    from nnterp_mcp.settings import Settings

    return locate(BUILTIN, None, Settings().cache, False, lambda message: None).folder


@pytest.fixture(scope="session")
def warm(smollm2_folder: Path) -> Generator[Caller]:
    """A client of a server on stdio that has the default model loaded; tests leave it as they found it."""
    from tests.serving import stdio, text

    with stdio() as caller:
        loaded = caller.call("load_model", model="smollm2-135m")
        assert not loaded.is_error, text(loaded)
        yield caller


@pytest.fixture(scope="session")
def count_tokens(smollm2_folder: Path) -> Callable[[object], int]:
    """Counts the tokens that a model reads for a text, or for data as compact JSON."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)

    def count(content: object) -> int:
        if not isinstance(content, str):
            content = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return len(tokenizer(content)["input_ids"])

    return count
