"""Models whose numbers are not finite: which layer it is, and what to try."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from nnterp_mcp.errors import NnterpError, UnknownModel, Unsupported
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.structure.attention_backend import probe_eagerly
from nnterp_mcp.model.structure.call_recorder import ModuleCall, Tape, first_state

_WIDER = "Load it with dtype 'bfloat16' or 'float32'."
_FITTING = "Give the configuration that belongs to the weights."
_BROKEN = "Download or convert the weights again; those of a training that diverged cannot be used."


def require_finite_weights(model: nn.Module, name: str) -> None:
    """Refuses weights that are not finite.

    Raises:
        UnknownModel: One of them is not; with its layer.
    """
    for path, weight in model.named_parameters():
        if weight.is_meta or not weight.is_floating_point() or weight.itemsize < 2 or _is_finite(weight):
            continue
        missing = int(weight.isnan().sum())
        wrong = missing or int(weight.isinf().sum())
        what = f"{wrong} of the {weight.numel()} numbers of {_where(path)} are {'NaN' if missing else 'infinite'}"
        if weight.dtype == torch.float16 and not missing:
            raise UnknownModel(f"{what} in {name} as float16, which ends at 65504", _WIDER)
        raise UnknownModel(f"{what} in the weights of {name}", _BROKEN)


def first_pass(model: nn.Module, name: str) -> Tape:
    """The first short pass of a model.

    Raises:
        UnknownModel: Its numbers outgrow their type; with the layer where that begins.
        Unsupported: Its code does not run with its configuration.
    """
    try:
        tape = probe_eagerly(model)
    except Exception as error:
        if isinstance(error, NnterpError) or says_nothing(error):
            raise
        said = (str(error).splitlines() or [""])[0][:200]
        raise Unsupported(f"{name} does not run: {type(error).__name__}: {said}", _FITTING) from error
    if not tape.logits.is_meta and not bool(tape.logits.float().logsumexp(-1).isfinite().all()):
        _explain(model, tape, name)
    return tape


def _explain(model: nn.Module, tape: Tape, name: str) -> NoReturn:
    require_finite_weights(model, name)
    paths = {id(module): path for path, module in model.named_modules()}
    ended = sorted((call for call in tape.calls if call.end >= 0), key=lambda call: call.end)
    first = next((call for call in ended if not _gives_finite(call)), None)
    where = "its logits" if first is None else _where(paths[id(first.module)])
    kind = str(tape.logits.dtype).removeprefix("torch.")
    raise UnknownModel(
        f"the weights of {name} are finite, and what {where} computes of them in {kind} is not",
        _WIDER if kind == "float16" else _BROKEN,
    )


def _is_finite(weight: Tensor) -> bool:
    # A sum is fast and finite only if every number is; it may overflow by itself.
    return bool(weight.sum(dtype=torch.float32).isfinite()) or bool(weight.isfinite().all())


def _gives_finite(call: ModuleCall) -> bool:
    state = first_state(call.output)[1]
    return state is None or not state.is_floating_point() or bool(state.isfinite().all())


def _where(path: str) -> str:
    """A module or weight with its layer, as far as its path tells."""
    layer = next((part for part in path.split(".") if part.isdigit()), None)
    return path if layer is None else f"layer {layer} ({path})"
