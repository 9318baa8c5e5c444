from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.families import standardized
from tools.train_dictionary import train_both


@pytest.mark.slow
def test_both_dictionaries_are_trained_and_read_again(tmp_path: Path) -> None:
    said: list[str] = []
    train_both(standardized("llama", "sdpa"), tmp_path, 2, texts=32, latents=96, k=8, steps=300, report=said.append)

    *_, autoencoder, transcoder = said
    assert autoencoder.startswith("sae: ")
    assert "L0 8.0" in autoencoder
    assert transcoder.startswith("layers.2.mlp: ")
    for line in (autoencoder, transcoder):
        assert float(line.partition("FVU ")[2].partition(",")[0]) < 0.9
