"""Dictionaries that the libraries save are read to the same numbers.

`NNTERP_MCP_FEATURES_PYTHON` names a Python that has them: they want other versions of what this project uses.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from nnterp_mcp.experiments.features.layouts import find_dictionaries

PYTHON = os.environ.get("NNTERP_MCP_FEATURES_PYTHON", "")
SCRIPT = Path(__file__).with_name("by_libraries.py")


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="no Python with sae-lens, eai-sparsify and dictionary-learning is named")
def test_dictionaries_are_those_of_the_libraries_that_save_them(tmp_path: Path) -> None:
    subprocess.run([PYTHON, str(SCRIPT), str(tmp_path)], check=True, env={**os.environ, "PYTHONPATH": ""})
    folders = sorted(path.parent for path in tmp_path.glob("*/expected.safetensors"))
    off: dict[str, float] = {}
    for folder in folders:
        expected = load_file(folder / "expected.safetensors")
        made = find_dictionaries(folder, str(folder))[0].load()
        features = made.encode(expected["states"])
        back = made.decode(features, expected["states"])
        for name, found in (("features", features), ("back", back)):
            wanted = expected[name]
            off[f"{folder.name} {name}"] = float((found - wanted).abs().max() / wanted.abs().max())

    assert len(off) == 2 * 18
    assert max(off.values()) < 1e-6, off
