"""The relative change of weights between two models, module by module, with its rank and spectrum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.model.loading.adapters import ADAPTER, adapted_layers

_LARGEST = 1024
"""The smaller side, at most, of a change that is decomposed; an adapter's is, however large."""

_SHOWN = 16
"""Singular values that are kept."""

_NOISE = 1e-5
"""A singular value below this share of the largest is rounding."""


@dataclass(frozen=True)
class WeightChange:
    """The change of one weight.

    Attributes:
        path: Its module, with the weight's name unless that is `weight`.
        shape: Its shape.
        norm: The Frobenius norm of the change.
        relative: That over the norm of the base's weight.
        rank: The number of singular values above rounding; None where the change was not decomposed.
        spectrum: The largest singular values.
        written: The output direction of the largest, of length 1; None where it was not decomposed.
    """

    path: str
    shape: tuple[int, ...]
    norm: float
    relative: float
    rank: int | None = None
    spectrum: tuple[float, ...] = ()
    written: Float[Tensor, " out"] | None = None


@torch.inference_mode()
def compare_weights(base: nn.Module, model: nn.Module) -> list[WeightChange]:
    """The weights that differ, the largest relative change first; those of an adapter as what they add.

    Args:
        base: The base's module.
        model: The other one's, with modules of the same names.
    """
    before, after = dict(adapted_layers(base)), dict(adapted_layers(model))
    found = [change for path in {**before, **after} for change in _of_adapter(path, before.get(path), after.get(path))]
    others = {_plain_name(name): weight for name, weight in model.named_parameters()}
    for name, old in base.named_parameters():
        new = others.get(_plain_name(name))
        if new is None or new.data_ptr() == old.data_ptr() or new.shape != old.shape or ".lora_" in name:
            continue
        check_cancelled()
        change = new.float() - old.to(new.device).float()
        if bool(change.any()):
            found.append(_measured(_plain_name(name).removesuffix(".weight"), change, old.float()))
    return sorted(found, key=lambda change: -change.relative)


def _plain_name(name: str) -> str:
    """The name of a weight in a model without adapters."""
    return name.replace(".base_layer.", ".")


def _of_adapter(path: str, before: Any, after: Any) -> Iterator[WeightChange]:
    """The change that adapters make to one weight, by the small factors of an adapter that adds nothing else."""
    layer = before if after is None else after
    old = layer.base_layer.weight.float()
    factors = _factors(after) if before is None else None
    if factors is None:
        change = torch.zeros_like(old) if after is None else effective_change(after)
        change = change if before is None else change - effective_change(before)
        if bool(change.any()):
            yield _measured(path, change, old)
        return
    up, down = factors
    left, first = torch.linalg.qr(up)
    inner, values, _ = torch.linalg.svd(first @ torch.linalg.qr(down.T).R.T)
    norm = float(values.norm())
    if norm:
        yield _change(path, tuple(old.shape), norm, float(old.norm()), values, (left @ inner)[:, 0])


def _factors(layer: Any) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]] | None:
    """The factors whose product a plain adapter adds to a weight; None where it does something else too."""
    if getattr(layer, "lora_variant", {}).get(ADAPTER) is not None:
        return None
    scaling = layer.scaling[ADAPTER]
    if ADAPTER in layer.lora_A:
        return layer.lora_B[ADAPTER].weight.float() * scaling, layer.lora_A[ADAPTER].weight.float()
    return layer.lora_embedding_B[ADAPTER].float() * scaling, layer.lora_embedding_A[ADAPTER].float()


def effective_change(layer: Any) -> Float[Tensor, "out in"]:
    """The difference between a module with an adapter and its base's linear map, by their outputs."""
    inner = layer.base_layer
    if isinstance(inner, nn.Embedding):
        ids = torch.arange(inner.num_embeddings, device=inner.weight.device)
        return (layer(ids) - inner(ids)).float()
    width = layer.in_features
    unit = torch.eye(width, dtype=inner.weight.dtype, device=inner.weight.device)
    nothing = torch.zeros_like(unit[:1])
    change = (layer(unit) - layer(nothing)) - (inner(unit) - inner(nothing))
    return (change.T if change.T.shape == inner.weight.shape else change).float()


def _measured(path: str, change: Tensor, old: Tensor) -> WeightChange:
    norm, shape = float(change.norm()), tuple(change.shape)
    if change.ndim != 2 or min(shape) > _LARGEST:
        return WeightChange(path, shape, norm, norm / max(float(old.norm()), 1e-30))
    fine = change.double()
    gram = fine @ fine.T if shape[0] <= shape[1] else fine.T @ fine
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.clamp_min(0).sqrt().flip(0)
    first = vectors[:, -1].float()
    written = first if shape[0] <= shape[1] else torch.nn.functional.normalize(change @ first, dim=0)
    return _change(path, shape, norm, float(old.norm()), values, written)


def _change(
    path: str, shape: tuple[int, ...], norm: float, whole: float, values: Tensor, written: Tensor
) -> WeightChange:
    rank = int((values > values[0] * _NOISE).sum())
    spectrum = tuple(values[:_SHOWN].tolist())
    return WeightChange(path, shape, norm, norm / max(whole, 1e-30), rank, spectrum, written.cpu())
