"""Weights that are read: safetensors and GGUF alone, for a pickle can run code while it is opened."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnterp_mcp.errors import Forbidden, UnknownModel
from nnterp_mcp.fields import shown

_SAFE = (".safetensors", ".safetensors.index.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CONVERT = "Only safetensors and GGUF are read: convert it with transformers' save_pretrained first."


def require_safetensors(origin: str, files: Sequence[str]) -> None:
    """Refuses a model without weights that can be read, by the names of its files.

    Raises:
        Forbidden: Its weights are there as pickle only.
        UnknownModel: It holds no weights.
    """
    if any(file.endswith(".safetensors") for file in files):
        return
    pickles = [file for file in files if file.endswith(_PICKLES)]
    if pickles:
        raise Forbidden(f"{origin} has its weights only as pickle ({pickles[0]}), which can run code", _CONVERT)
    raise UnknownModel(f"{origin} holds no weights: there is no .safetensors file", "Give a complete model.")


def require_own_weights(origin: str, folder: Path) -> None:
    """Refuses a folder whose files name weights of another kind, or in another place, for transformers follows them.

    An index names the files of its shards; a configuration may name a file of weights; an adapter, with peft
    installed, names a whole model.

    Raises:
        Forbidden: They do.
    """
    for index in sorted(folder.glob("*.index.json")):
        for name in sorted(set(map(str, _mapping(_mapping(_json(index)).get("weight_map")).values()))):
            _require_own_file(origin, index.name, name, _SAFE[:1])
    named = _mapping(_json(folder / "config.json")).get("transformers_weights")
    if named is not None:
        _require_own_file(origin, "config.json", str(named), _SAFE)
    if (folder / "adapter_config.json").exists():
        raise Forbidden(
            f"{origin} is an adapter (adapter_config.json), which names the model that it changes",
            "Merge it into its model first, and load what that gives.",
        )


def _require_own_file(origin: str, source: str, name: str, endings: tuple[str, ...]) -> None:
    if not name.endswith(endings):
        raise Forbidden(f"{source} of {origin} names {shown(name)}, which is no safetensors file", _CONVERT)
    if "/" in name or "\\" in name:
        raise Forbidden(f"{source} of {origin} names {shown(name)}, which lies in another folder", _CONVERT)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # what is wrong with it, whoever needs it will say
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
