"""Checks an adapter's folder before anything in it is loaded, and reads how a caller names an adapter and its scale.

Imports no torch, so that the server can refuse a folder without asking a worker. Only safetensors weights are read: a
pickle can run code when it is opened.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nnterp_mcp.errors import Forbidden, InvalidRequest, UnknownModel, Unsupported
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.model_folder import count_numbers

CONFIGURATION, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE = "Merge it into its base (PEFT's merge_and_unload, then save_pretrained), and load what that gives."
_SAVED = "Give the folder that PEFT's save_pretrained wrote."
_PICKLE = "adapter_model.bin"
_LARGEST = 4_000_000
"""Bytes of a configuration, at most."""

_STRONGEST = 100.0
"""The largest scale of an adapter, and that of its opposite."""

_OTHER_PARTS = (
    "layer_replication",
    "megatron_config",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
)
"""Fields of a configuration that make an adapter compute something else than LoRA, rsLoRA or DoRA."""

_OWN_START = (None, True, False, "gaussian", "eva", "orthogonal")
"""Initializations that leave the weights of the base as they are; others subtract from them what they put in."""


_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")


def split_hub(source: str) -> tuple[str, str | None] | None:
    """The repository on the Hub that an address names, and the revision that follows it after `@`; None for a path."""
    found = _HUB.fullmatch(source)
    return None if found is None else (found[1], found[2])


def pinned(name: str, revision: str | None) -> str:
    """The name of an adapter with the commit that was found for it; of a folder, which has none, as it is."""
    source, scale = split_scale(name)
    hub = split_hub(source)
    return name if hub is None or revision is None else with_scale(f"{hub[0]}@{revision}", scale)


def split_scale(name: str) -> tuple[str, float]:
    """A name and the scale that follows it after `@`, 1 where none does.

    What is no number after the id of a repository on the Hub is its revision.

    Raises:
        InvalidRequest: What follows is no scale.
    """
    whole = name
    name, mark, said = name.rpartition("@")
    if not mark:
        return said, 1.0
    try:
        scale = float(said)
    except ValueError:
        scale = math.nan
    if not abs(scale) <= _STRONGEST:
        if split_hub(whole) is not None:
            return whole, 1.0
        raise InvalidRequest(
            f"{shown(said)} after the @ is no scale of an adapter: give a number from -{_STRONGEST:g} to "
            f"{_STRONGEST:g}, where 1 is the adapter as it was trained."
        )
    return name, scale


def with_scale(name: str, scale: float) -> str:
    """A name with the scale that is not 1."""
    return name if scale == 1 else f"{name}@{scale:g}"


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter that can be loaded.

    Args:
        folder: The adapter's folder.

    Raises:
        UnknownModel: The folder holds no adapter, or its files cannot be read.
        Forbidden: Its weights are there as pickle only.
        Unsupported: It is no LoRA, rsLoRA or DoRA adapter, or has a part that is none.
    """
    require_files(str(folder), [path.name for path in folder.glob("*") if path.is_file()])
    config = _read(folder)
    count_numbers(folder / WEIGHTS)
    _require_lora(folder, config)
    return config


def require_files(origin: str, names: Collection[str]) -> None:
    """Refuses what holds no adapter that is read.

    Args:
        origin: The folder or repository, for errors.
        names: The files in it.

    Raises:
        UnknownModel: A file of an adapter is missing.
        Forbidden: Its weights are there as pickle only.
    """
    if CONFIGURATION not in names:
        raise UnknownModel(f"{origin} holds no adapter: it has no {CONFIGURATION}", _SAVED)
    if WEIGHTS not in names and _PICKLE in names:
        raise Forbidden(
            f"{origin} has its weights only as pickle ({_PICKLE}), which can run code",
            "Save the adapter as safetensors: PEFT's save_pretrained does by default.",
        )
    if WEIGHTS not in names:
        raise UnknownModel(f"{origin} holds no {WEIGHTS}", _SAVED)


def _read(folder: Path) -> dict[str, Any]:
    file = folder / CONFIGURATION
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        config = json.loads(file.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UnknownModel(f"{CONFIGURATION} of {folder} cannot be read: {error}") from None
    return config


def _require_lora(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise Unsupported(
            f"{folder} is an adapter of type {shown(kind)}: LoRA, rsLoRA and DoRA are loaded",
            MERGE,
        )
    for name in _OTHER_PARTS:
        if config.get(name):
            raise Unsupported(
                f"{folder} sets {name}, which is none of LoRA, rsLoRA and DoRA",
                MERGE,
            )
    start = config.get("init_lora_weights")
    if start not in _OWN_START:
        raise Unsupported(
            f"{folder} was initialized by {shown(start)}, which changes the base's own weights, and those are shared",
            "Convert it to plain LoRA (PEFT's path_initial_model_for_weight_conversion) when it is saved.",
        )
