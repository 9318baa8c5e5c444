"""Projects hidden states to logits exactly as the model does.

Some models do more than apply the final norm and the head: they cap or scale the logits, or scale the head's input.
Where the probe saw nothing else, norm and head are called directly. Everywhere else the model's own forward pass is
replayed without its layers: each hidden state is a row of one position, passed in as the last layer's output.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.structure.anatomy import Anatomy, LayerAnatomy


def unembed(
    model: nn.Module, anatomy: Anatomy, hidden: Float[Tensor, "*rows hidden"], name: str
) -> Float[Tensor, "*rows vocabulary"]:
    """The logits for hidden states of the residual stream after the last layer.

    Args:
        model: The Hugging Face model, with whatever listens to it standing down.
        hidden: States before the final norm; moved to the model's device and dtype.
        name: What to call the model in an error.

    Raises:
        InvalidRequest: The last dimension is not the model's hidden size.
        Unsupported: The model carries several residual streams.
    """
    if hidden.shape[-1] != anatomy.hidden_size:
        raise InvalidRequest(
            f"hidden states of width {hidden.shape[-1]} cannot be projected: {name} has a hidden size of "
            f"{anatomy.hidden_size}."
        )
    if anatomy.streams > 1:
        raise Unsupported(f"{name} has no logits for one hidden state: its layers carry {anatomy.streams} streams.")
    rows = hidden.reshape(-1, 1, anatomy.hidden_size)
    logits = _call_head(anatomy, rows) if anatomy.head_is_direct else replay_tail(model, anatomy, rows)
    return logits.reshape(*hidden.shape[:-1], logits.shape[-1])


def replay_tail(
    model: nn.Module, anatomy: Anatomy, rows: Float[Tensor, "row 1 hidden"]
) -> Float[Tensor, "row 1 vocabulary"]:
    """Run the model with every layer left out and `rows` as what the last one returned."""
    rows = rows.to(*_place(anatomy.last.block.module, rows))
    embedding = anatomy.embed_tokens.module
    ids = torch.ones(rows.shape[0], 1, dtype=torch.long, device=_place(embedding, rows)[0])
    with _without_layers(anatomy.layers, rows):
        return model(input_ids=ids, use_cache=False).logits


def _call_head(anatomy: Anatomy, rows: Float[Tensor, "row 1 hidden"]) -> Float[Tensor, "row 1 vocabulary"]:
    for site in (anatomy.ln_final, anatomy.lm_head):
        if site is not None:
            rows = site.module(rows.to(*_place(site.module, rows)))
    return rows


def _place(module: nn.Module, like: Tensor) -> tuple[torch.device, torch.dtype]:
    """The device and dtype in which a module computes, also if it is offloaded."""
    devices = (getattr(getattr(part, "_hf_hook", None), "execution_device", None) for part in module.modules())
    executes: Any = next((device for device in devices if device is not None), None)
    for weight in module.parameters():
        if weight.is_floating_point():
            on = weight.device if executes is None else torch.device(executes)
            return on, weight.dtype
    return like.device, like.dtype


@contextmanager
def _without_layers(layers: tuple[LayerAnatomy, ...], rows: Tensor) -> Generator[None]:
    own: list[tuple[nn.Module, Any]] = []
    try:
        for layer in layers:
            module = layer.block.module
            own.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = _Returning(layer.block.make_output(rows))
        yield
    finally:
        for module, forward in own:
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward


class _Returning:
    def __init__(self, value: Any) -> None:
        self._value = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._value
