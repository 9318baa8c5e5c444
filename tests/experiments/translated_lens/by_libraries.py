"""Reads exported lenses with TransformerLens and the tuned-lens library, applies and saves them; prints JSON.

Run by a Python that has them, with the folder of the exported lenses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformer_lens.tools.analysis import JacobianLens  # pyright: ignore
from tuned_lens.nn.lenses import TunedLens, TunedLensConfig  # pyright: ignore


class Unembed(torch.nn.Module):
    """Stands in for a model's head, which translating needs nothing of."""

    unembedding = SimpleNamespace(weight=torch.zeros(1))

    def unembedding_hash(self) -> str:
        return ""


def main(folder: Path) -> None:
    states = torch.load(folder / "states.pt", weights_only=True)
    jacobian: Any = JacobianLens.load(str(folder / "ours.pt"))
    found = {f"jacobian.{layer}": jacobian.transport(states, layer).tolist() for layer in jacobian.source_layers}
    jacobian.save(str(folder / "theirs.pt"))

    config: Any = TunedLensConfig.from_dict(json.loads((folder / "ours" / "config.json").read_text()))
    tuned: Any = TunedLens(Unembed(), config)  # pyright: ignore
    tuned.layer_translators.load_state_dict(torch.load(folder / "ours" / "params.pt", weights_only=True))
    blocks = range(1, config.num_hidden_layers)
    found |= {f"tuned.{block - 1}": tuned.transform_hidden(states, block).tolist() for block in blocks}
    tuned.save(folder / "theirs")
    print(json.dumps(found))


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]))
