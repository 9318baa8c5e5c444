"""Low-rank adapters on a model whose weights they share: LoRA, rsLoRA and DoRA, as PEFT saves and computes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nnterp_mcp.errors import UnknownModel, Unsupported
from nnterp_mcp.formatting import plural
from nnterp_mcp.model.loading.shared_copy import share_weights
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.adapter_folder import MERGE, WEIGHTS, read_adapter_config, with_scale
from nnterp_mcp.request.arguments import shown

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER = "default"
"""PEFT's name of the one adapter on a model."""

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(A|B|embedding_A|embedding_B)(?:\.weight)?")
_ITS_BASE = "Load it on the base that it was trained on."
_MISSING = "Install it: pip install 'nnterp-mcp[adapters]'."


@dataclass(frozen=True)
class Adapter:
    """An adapter on a model.

    Attributes:
        folder: Its folder.
        scale: What its change of the weights is multiplied by.
        kind: LoRA, rsLoRA or DoRA.
        ranks: The ranks of its modules, in ascending order, each once.
        modules: The paths of the modules that it changes.
        base_name: The base that it names; None where it names none.
        parameters: The numbers that it has.
        origin: Where it came from, in words.
        revision: The Hub's commit, None for a folder.
    """

    folder: Path
    scale: float
    kind: str
    ranks: tuple[int, ...]
    modules: tuple[str, ...]
    base_name: str | None
    parameters: int
    origin: str
    revision: str | None = None

    def __str__(self) -> str:
        """In words."""
        ranks = f"rank {self.ranks[0]}" if len(self.ranks) == 1 else f"ranks {self.ranks[0]} to {self.ranks[-1]}"
        names = sorted({path.rsplit(".", 1)[-1] for path in self.modules})
        said = f"{self.kind} of {ranks} on {plural(len(self.modules), 'module')} ({', '.join(names)})"
        said += "" if self.scale == 1 else f", scale {self.scale:g}"
        return said if self.revision is None else f"{said}, from {self.origin} at {self.revision}"


def adapt(
    base: StandardizedTransformer, folder: Path, scale: float = 1.0, name: str | None = None
) -> tuple[StandardizedTransformer, Adapter]:
    """A second model on the weights of the first, with an adapter on it.

    The base stays as it is: switching between the two switches the adapter on and off.

    Args:
        base: The base model.
        folder: The adapter's folder, as PEFT's `save_pretrained` writes it.
        scale: What the adapter's change is multiplied by, as PEFT's `set_scale` does.
        name: What errors and cards call the model.

    Raises:
        UnknownModel: The folder holds no adapter that can be read, or one of another base.
        Forbidden: Its weights are there as pickle only.
        Unsupported: It is no LoRA, rsLoRA or DoRA adapter, or PEFT is not installed.
    """
    written = read_adapter_config(folder)
    peft = _peft()
    if written.get("modules_to_save"):
        raise Unsupported(
            f"{folder} replaces whole modules ({', '.join(map(str, written['modules_to_save']))})",
            MERGE,
        )
    _require_one_device(base)
    model = share_weights(base.module)
    weights = _factors(folder, base.module)
    _require_fitting(folder, base.module, weights)
    config: LoraConfig = peft.LoraConfig.from_pretrained(str(folder))
    config.init_lora_weights = True
    config.inference_mode = True
    try:
        peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    except ValueError as error:
        raise UnknownModel(f"{folder} does not fit {base.name}: {shown(str(error))}") from error
    found = peft.set_peft_model_state_dict(model, weights, adapter_name=ADAPTER)
    missing = [name for name in found.missing_keys if "lora_" in name]
    if missing or found.unexpected_keys:
        raise UnknownModel(
            f"{folder} does not fit {base.name}: {shown((missing or found.unexpected_keys)[0])} is "
            f"{'missing' if missing else 'of no module'}"
        )
    layers = dict(adapted_layers(model))
    for layer in layers.values():
        _to_float32(layer)
        if scale != 1:
            _rescale(layer, scale)
    model.eval().requires_grad_(False)
    card = Adapter(
        folder=folder,
        scale=scale,
        kind="DoRA" if written.get("use_dora") else "rsLoRA" if written.get("use_rslora") else "LoRA",
        ranks=tuple(sorted({layer.r[ADAPTER] for layer in layers.values()})),
        modules=tuple(layers),
        base_name=written.get("base_model_name_or_path"),
        parameters=sum(value.numel() for value in weights.values()),
        origin=str(folder),
    )
    label = name or with_scale(f"{base.name}+{folder.name}", scale)
    return StandardizedTransformer(model, tokenizer=base.tokenizer, name=label, alike=base), card


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The modules of a model that an adapter changes, by their paths."""
    for path, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield path, module


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise Unsupported("adapters are read with PEFT, which is not installed", _MISSING) from error
    return peft


def _require_one_device(base: StandardizedTransformer) -> None:
    if len({str(weight.device) for weight in base.module.parameters()}) > 1 or not base.module.device:
        raise Unsupported(f"{base.name} is spread over several devices, and an adapter shares weights on one")
    if any(vars(module).get("_hf_hook") is not None for module in base.module.modules()):
        raise Unsupported(f"accelerate moves the weights of {base.name}, which an adapter then cannot share")


def _factors(folder: Path, base: nn.Module) -> dict[str, Tensor]:
    """The numbers of an adapter by their names in a model.

    PEFT saves embeddings that it adapts along with their change: those must be the base's, whose weights are shared.

    Raises:
        Unsupported: There are whole weights that are not the base's.
    """
    found = {name.removeprefix(_PREFIX): value for name, value in load_file(folder / WEIGHTS).items()}
    for name in [name for name in found if ".lora_" not in name]:
        whole, own = found.pop(name), dict(base.named_parameters()).get(name.replace(".base_layer.", "."))
        if own is None or own.shape != whole.shape or not torch.equal(own.cpu(), whole.to(own.dtype)):
            raise Unsupported(f"{folder} replaces {name.replace('.base_layer.', '.')} as a whole", MERGE)
    return found


def _require_fitting(folder: Path, base: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuses an adapter of a base with other modules or widths.

    Raises:
        UnknownModel: A module is not there, or has another shape.
    """
    modules = dict(base.named_modules())
    for name, factor in weights.items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            continue
        path, which = match.groups()
        module: Any = modules.get(path)
        if module is None or not isinstance(getattr(module, "weight", None), Tensor):
            raise UnknownModel(
                f"{folder} is an adapter of another base: it changes {path}, and this model has no such module",
                _ITS_BASE,
            )
        shape = tuple(cast("Tensor", module.weight).shape)
        width = factor.shape[1] if which.endswith("A") else factor.shape[0]
        if getattr(module, "in_features", None) is not None and which in ("A", "B"):
            expected = module.in_features if which == "A" else module.out_features
            if width != expected:
                raise UnknownModel(
                    f"{folder} is an adapter of another base: at {path} it "
                    f"{'reads' if which == 'A' else 'writes'} {width} numbers, and this model has {expected} there",
                    _ITS_BASE,
                )
        elif width not in shape:
            raise UnknownModel(
                f"{folder} is an adapter of another base: at {path} it has {width} numbers, and this model a weight "
                f"of the shape {shape}",
                _ITS_BASE,
            )
        if not bool(factor.isfinite().all()):
            raise UnknownModel(f"{name} of {folder} holds numbers that are not finite", "Download or save it again.")


def _to_float32(layer: Any) -> None:
    """Computes an adapter in float32 where its base is in less, as PEFT does by default."""
    for part in (layer.lora_A, layer.lora_B, layer.lora_embedding_A, layer.lora_embedding_B):
        if ADAPTER in part and next(iter(_tensors(part[ADAPTER]))).dtype in (torch.float16, torch.bfloat16):
            for tensor in _tensors(part[ADAPTER]):
                tensor.data = tensor.data.float()


def _tensors(part: nn.Module | Tensor) -> Iterator[Tensor]:
    yield from (part,) if isinstance(part, Tensor) else part.parameters()


def _rescale(layer: Any, scale: float) -> None:
    """Multiplies a layer's change in its own factor, so that hashes and norms of weights see it."""
    if math.isclose(scale, 1.0):
        return
    part = layer.lora_B[ADAPTER] if ADAPTER in layer.lora_B else layer.lora_embedding_B[ADAPTER]
    for tensor in _tensors(part):
        tensor.data = tensor.data * scale
