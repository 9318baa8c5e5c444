"""The relative change of activations between two models at each layer and site, and each layer's own share of it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.forward import Capture, forward
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.engine.readouts.reductions import take_rows
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch
from nnterp_mcp.request.sites import Site

COMPARED: tuple[Site, ...] = ("attentions_output", "mlps_output", "layers_output")
_MOST = 1 << 27
"""Numbers of captured states that are in memory at once."""


@dataclass
class ActivationChange:
    """The change of the states of one site of one layer, summed over tokens.

    Attributes:
        place: The site and layer.
        tokens: How many tokens there were.
        change: The sum of ‖h' - h‖ / ‖h‖.
        cosine: The sum of the cosines of h' and h.
        made: Of the output of a layer, the sum of ‖f'(x') - f(x')‖ / ‖h‖: what the layer's other weights make of the
            same input.
        came: The sum of ‖f(x') - f(x)‖ / ‖h‖: what the base's layer makes of the other input.
        norms: The sum of ‖h‖.
        difference: The sum of h' - h.
    """

    place: Place
    tokens: int = 0
    change: float = 0.0
    cosine: float = 0.0
    made: float = 0.0
    came: float = 0.0
    norms: float = 0.0
    difference: Float[Tensor, " hidden"] = field(default_factory=lambda: torch.zeros(0))

    @property
    def mean_difference(self) -> Float[Tensor, " hidden"]:
        """The mean of h' - h."""
        return self.difference / max(1, self.tokens)

    def mean(self, total: float) -> float:
        """A sum over tokens as a mean."""
        return total / max(1, self.tokens)


def correspond(base: StandardizedTransformer, model: StandardizedTransformer) -> bool:
    """True if two models are built alike: of one class, with as many layers of the same width."""
    built = [(type(one.module), one.num_layers, one.hidden_size, one.num_heads) for one in (base, model)]
    return built[0] == built[1]


def require_same_build(base: StandardizedTransformer, model: StandardizedTransformer) -> None:
    """Refuses models whose layers do not correspond.

    Raises:
        InvalidRequest: They are of other classes, or have other numbers of layers or another width.
    """
    if not correspond(base, model):
        described = [
            f"{one.name} is a {type(one.module).__name__} with {one.num_layers} layers of width {one.hidden_size}"
            for one in (base, model)
        ]
        raise InvalidRequest(
            f"{' and '.join(described)}: their activations and weights do not correspond.",
            'Compare what they predict and write alone: parts: ["predictions", "texts"].',
        )


def shared_places(base: StandardizedTransformer, model: StandardizedTransformer) -> list[Place]:
    """The hook points that both models have: the outputs of layers, attention and MLPs."""
    found: list[Place] = []
    for place in (Place(site, layer) for layer in range(model.num_layers) for site in COMPARED):
        try:
            require_place(base, place)
            require_place(model, place)
        except Unsupported:
            continue
        found.append(place)
    return found


def compare_activations(
    base: StandardizedTransformer, model: StandardizedTransformer, work: Workload
) -> list[ActivationChange]:
    """Runs both models on the same tokens; a prompt's first token, whose state is unlike all others, is left out.

    Args:
        base: The model that is compared with; another one than `model`.
        model: The other one.
        work: The prompts.

    Raises:
        InvalidRequest: Their layers do not correspond.
    """
    require_same_build(base, model)
    places = shared_places(base, model)
    found = {place: ActivationChange(place, difference=torch.zeros(model.hidden_size)) for place in places}
    width = len(places) * model.hidden_size

    def add(batch: Batch, numbers: Sequence[int]) -> None:
        entries = [
            (row, batch.padding[row] + at)
            for row, prompt in enumerate(batch.prompts)
            for at in range(min(1, len(prompt.ids) - 1), len(prompt.ids))
        ]
        rows, columns = torch.tensor(entries, device=model.device).T
        captures = [Capture(place, take_rows, {"rows": rows, "columns": columns}) for place in places]
        before = forward(base, batch, captures=captures).values
        with _rerunning(base, model) as remade:
            after = forward(model, batch, captures=captures).values
        for place, old, new in zip(places, before, after, strict=True):
            own = remade.get(place.layer) if place.site == "layers_output" else None
            _add(found[place], old.float(), new.float(), None if own is None else own[rows, columns].float())

    size = max(1, min(work.batch_tokens, _MOST // width))
    for _ in Workload(work.prompts, work.plan, size, work.progress).run_batches(model, add):
        pass
    return list(found.values())


def _add(
    sums: ActivationChange,
    old: Float[Tensor, "token hidden"],
    new: Float[Tensor, "token hidden"],
    remade: Float[Tensor, "token hidden"] | None,
) -> None:
    norms = old.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    sums.tokens += len(old)
    sums.norms += float(norms.sum())
    sums.change += float(((new - old).norm(dim=-1) / norms).sum())
    sums.cosine += float(torch.nn.functional.cosine_similarity(old, new, dim=-1).sum())
    sums.difference = sums.difference + (new - old).sum(0).cpu()
    if remade is not None:
        sums.made += float(((new - remade).norm(dim=-1) / norms).sum())
        sums.came += float(((remade - old).norm(dim=-1) / norms).sum())


@contextmanager
def _rerunning(base: StandardizedTransformer, model: StandardizedTransformer) -> Generator[dict[int | None, Tensor]]:
    """While this lasts, each layer of the base runs on what the same layer of the model reads.

    Yields:
        What it returns, by layer.
    """
    made: dict[int | None, Tensor] = {}

    def listen(layer: int) -> Any:
        block = base.anatomy.layers[layer].block

        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            made[layer] = block.read_output(block.module(*args, **kwargs))

        return hook

    alike = nullcontext() if base.attention == model.attention else _attending_as(base, model.attention)
    with ExitStack() as stack:
        stack.enter_context(alike)
        for layer in model.anatomy.layers:
            module = layer.block.module
            stack.enter_context(module.register_forward_hook(listen(layer.index), with_kwargs=True))
        yield made


@contextmanager
def _attending_as(model: StandardizedTransformer, implementation: str) -> Generator[None]:
    before = model.attention
    model.use_attention(implementation)
    try:
        yield
    finally:
        model.use_attention(before)
