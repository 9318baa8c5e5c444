"""A limit on the size of a model under construction: its configuration may ask for far more than its weights have."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from nnterp_mcp.errors import UnknownModel
from nnterp_mcp.formatting import size
from nnterp_mcp.request.model_folder import weight_files

_MOST_IN_A_BYTE = 8
"""Parameters per byte of stored weights, at most: some formats pack them."""

_FEW = 10_000_000
_COMPUTED = 1_000_000_000
"""Numbers that need not be stored: small parameters, and tables such as causal masks."""


@contextmanager
def built_within(origin: str, folder: Path, gguf: str | None) -> Generator[None]:
    """Stops the construction of a model that outgrows the weights in its folder.

    It counts the parameters and buffers that transformers registers on the meta device before it reads weights.

    Raises:
        UnknownModel: Its configuration asks for more than they can fill.
    """
    files = [folder / gguf] if gguf else weight_files(folder)
    stored = sum(file.stat().st_size for file in files if file.exists())
    watches = [
        hooks.register_module_parameter_registration_hook(_watch(origin, stored, _MOST_IN_A_BYTE * stored + _FEW)),
        hooks.register_module_buffer_registration_hook(_watch(origin, stored, _MOST_IN_A_BYTE * stored + _COMPUTED)),
    ]
    try:
        yield
    finally:
        for watch in watches:
            watch.remove()


def _watch(origin: str, stored: int, most: int) -> Callable[[nn.Module, str, Any], None]:
    count = 0

    def see(module: nn.Module, name: str, tensor: Any) -> None:
        nonlocal count
        if isinstance(tensor, Tensor) and tensor.is_meta:
            count += tensor.numel()
        if count > most:
            raise UnknownModel(
                f"the configuration of {origin} asks for more than {most} numbers, and its weights have {size(stored)}",
                "Give the configuration that belongs to the weights.",
            )

    return see
