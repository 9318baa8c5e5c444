"""The relative change of activations between two models at each layer and site, and each layer's own share of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnterp_mcp.engine.edits import Edit, Patched, StateEdit
from nnterp_mcp.engine.forward import Capture, Plan, forward
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.engine.readouts.reductions import take_rows
from nnterp_mcp.engine.token_spans import Reach
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.comparison.sides import AlignedPrompt, ComparedModel, base_batch, batches_of
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch
from nnterp_mcp.request.sites import Site

COMPARED: tuple[Site, ...] = ("attentions_output", "mlps_output", "layers_output")
EARLY = 5
"""Positions at the begin of a text, of which the first is left out, whose difference is summed by itself too."""

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
        split: The change was split into these two.
        norms: The sum of ‖h‖.
        difference: The sum of h' - h.
        early_tokens: How many tokens there were at the first positions.
        early_norms: The sum of their ‖h‖.
        early: The sum of their h' - h.
    """

    place: Place
    tokens: int = 0
    change: float = 0.0
    cosine: float = 0.0
    made: float = 0.0
    came: float = 0.0
    split: bool = False
    norms: float = 0.0
    difference: Float[Tensor, " hidden"] = field(default_factory=lambda: torch.zeros(0))
    early_tokens: int = 0
    early_norms: float = 0.0
    early: Float[Tensor, " hidden"] = field(default_factory=lambda: torch.zeros(0))

    @property
    def mean_difference(self) -> Float[Tensor, " hidden"]:
        """The mean of h' - h."""
        return self.difference / max(1, self.tokens)

    @property
    def early_difference(self) -> Float[Tensor, " hidden"]:
        """The mean of h' - h over the first positions."""
        return self.early / max(1, self.early_tokens)

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
    base: ComparedModel, model: ComparedModel, prompts: Sequence[AlignedPrompt], work: Workload
) -> list[ActivationChange]:
    """Runs both models on the same texts; a prompt's first token, whose state is unlike all others, is left out.

    Args:
        base: The model that is compared with; another one than `model`.
        model: The other one.
        prompts: The prompts as both read them; where they are read as other tokens, the pairs of positions count, and
            the change of a layer's output is not split.
        work: The size of batches, and where progress is reported.

    Raises:
        InvalidRequest: Their layers do not correspond.
    """
    require_same_build(base.model, model.model)
    places = shared_places(base.model, model.model)
    inputs = _layer_inputs(base.model, model.model) if all(prompt.same for prompt in prompts) else []
    hidden = model.model.hidden_size
    found = {
        place: ActivationChange(place, difference=torch.zeros(hidden), early=torch.zeros(hidden)) for place in places
    }

    def add(batch: Batch, numbers: Sequence[int]) -> None:
        other = base_batch(base, prompts, numbers)
        pairs = [
            (row, *pair)
            for row, number in enumerate(numbers)
            for pair in prompts[number].pairs[_first(prompts[number]) :]
        ]
        early = torch.tensor([at < EARLY for _, _, at in pairs])
        before = forward(base.model, other, base.plan, _captures(places, other, [(row, at) for row, at, _ in pairs]))
        chosen = [(row, at) for row, _, at in pairs]
        whole = [(row, at) for row, prompt in enumerate(batch.prompts) for at in range(len(prompt.ids))]
        asked = [*_captures(places, batch, chosen), *_captures(inputs, batch, whole)]
        after = forward(model.model, batch, model.plan, asked).values
        stream = [place for place in places if place.site == "layers_output"] if inputs else []
        given = _with_inputs(base.plan, other, dict(zip(inputs, after[len(places) :], strict=True)))
        made = forward(base.model, other, given, _captures(stream, other, chosen)).values if stream else []
        remade = dict(zip(stream, made, strict=True))
        for place, old, new in zip(places, before.values, after, strict=False):
            own = remade.get(place)
            _add(found[place], old.float(), new.float(), early, None if own is None else own.float())

    width = (len(places) + len(inputs)) * hidden
    size = max(1, min(work.batch_tokens, _MOST // width))
    for _ in batches_of(base, prompts, replace(work, batch_tokens=size)).run_batches(model.model, add):
        pass
    return list(found.values())


def _first(prompt: AlignedPrompt) -> int:
    """The first pair that counts: the second one, unless there is only one, or the first is no first token."""
    return int(len(prompt.pairs) > 1 and prompt.pairs[0][1] == 0)


def _layer_inputs(base: StandardizedTransformer, model: StandardizedTransformer) -> list[Place]:
    """The input of every layer; none where one of them has no such hook point."""
    places = [Place("layers_input", layer) for layer in range(model.num_layers)]
    try:
        for place in places:
            require_place(base, place)
            require_place(model, place)
    except Unsupported:
        return []
    return places


def _captures(places: Sequence[Place], batch: Batch, entries: Sequence[tuple[int, int]]) -> list[Capture]:
    """Captures of the same (row, position) pairs at each place."""
    rows, columns = torch.tensor([(row, batch.padding[row] + at) for row, at in entries]).T
    return [Capture(place, take_rows, {"rows": rows, "columns": columns}) for place in places]


def _with_inputs(plan: Plan, batch: Batch, inputs: dict[Place, Float[Tensor, "token hidden"]]) -> Plan:
    """The operations of a base whose every layer reads what the same layer of another model read.

    One pass is enough for all layers: whatever a layer returns, the next one reads the given input.
    """
    counts = [len(prompt.ids) for prompt in batch.prompts]
    reach = Reach({prompt.index: range(count) for prompt, count in zip(batch.prompts, counts, strict=True)})
    index = {(prompt.index, at): at for prompt in batch.prompts for at in range(len(prompt.ids))}
    edits: dict[Place, list[Edit]] = {place: [*listed] for place, listed in plan.edits.items()}
    for place, states in inputs.items():
        split = dict(zip((prompt.index for prompt in batch.prompts), states.split(counts), strict=True))
        edits.setdefault(place, []).append(StateEdit(place, reach, Patched(split, index)))
    return Plan(edits, plan.labels)


def _add(
    sums: ActivationChange,
    old: Float[Tensor, "token hidden"],
    new: Float[Tensor, "token hidden"],
    early: Bool[Tensor, " token"],
    remade: Float[Tensor, "token hidden"] | None,
) -> None:
    norms = old.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    first = early.to(old.device)
    sums.tokens += len(old)
    sums.norms += float(norms.sum())
    sums.change += float(((new - old).norm(dim=-1) / norms).sum())
    sums.cosine += float(torch.nn.functional.cosine_similarity(old, new, dim=-1).sum())
    sums.difference = sums.difference + (new - old).sum(0).cpu()
    sums.early_tokens += int(first.sum())
    sums.early_norms += float(norms[first].sum())
    sums.early = sums.early + (new - old)[first].sum(0).cpu()
    if remade is not None:
        sums.split = True
        sums.made += float(((new - remade).norm(dim=-1) / norms).sum())
        sums.came += float(((remade - old).norm(dim=-1) / norms).sum())
