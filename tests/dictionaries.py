"""Dictionaries of features on disk, in SAELens' layout."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

if TYPE_CHECKING:
    from torch import Tensor

DICTIONARY = Path(tempfile.gettempdir()) / "nnterp-mcp-tests" / "dictionary"
"""A random one for the tiny models, made where it is first needed: its path is part of calls that all tests share."""


def random_dictionary() -> Path:
    """Where it is."""
    DICTIONARY.parent.mkdir(exist_ok=True)
    with FileLock(f"{DICTIONARY}.lock"):  # Processes of one run share it.
        if not (DICTIONARY / "cfg.json").exists():
            write(DICTIONARY, "blocks.1.hook_resid_post", 64, 24)
    return DICTIONARY


def write(folder: Path, hook: str, width: int, latents: int = 0, **config: Any) -> str:
    """A dictionary in SAELens' layout: random, or without a number of latents the identity."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    eye = torch.cat([torch.eye(width), -torch.eye(width)])
    rows = torch.randn(latents, width, generator=generator) if latents else eye
    tensors = {
        "W_enc": rows.T.contiguous(),
        "W_dec": rows.clone(),
        "b_enc": torch.zeros(len(rows)),
        "b_dec": torch.zeros(width),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    plain = {"architecture": "standard", "apply_b_dec_to_input": False, "metadata": {"hook_name": hook}}
    (folder / "cfg.json").write_text(json.dumps(plain | config))
    return str(folder)


def plain_states(family: str, ids: list[int], layer: int) -> Tensor:
    """The residual stream of a plain tiny model after a layer, without the first token."""
    import torch

    from nnterp_mcp.verification.tiny import tiny_model

    with torch.no_grad():
        return tiny_model(family)(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0, 1:]
