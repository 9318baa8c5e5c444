"""States at the places that dictionaries read, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.forward import Capture, forward
from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.readouts.reductions import take_rows
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch
from nnterp_mcp.request.feature_sites import FeaturePlace

_ROOT_MEAN_SQUARE = ("rms_norm_eps", "norm_epsilon")
_CENTRED = ("layer_norm_epsilon", "layer_norm_eps", "layernorm_epsilon")
"""Fields of a configuration for the epsilon of a norm, by what kind of norm has it."""


@dataclass(frozen=True)
class TokenStates:
    """The states at some positions of some prompts, in float32.

    Attributes:
        prompts: The index of each prompt.
        counts: The number of positions of each.
        states: By place, prompt after prompt, heads concatenated.
    """

    prompts: Sequence[int]
    counts: Sequence[int]
    states: Mapping[FeaturePlace, Float[Tensor, "token width"]]


def sites_behind(place: FeaturePlace) -> list[Place]:
    """The hook points of which the states at a place are made."""
    if place.site in ("residual_mid", "residual_mid_normalized"):
        return [Place("layers_input", place.layer), Place("attentions_output", place.layer)]
    return [Place(place.site, place.layer)]


def is_added_as_is(model: StandardizedTransformer, place: FeaturePlace) -> bool:
    """True for the raw output of a sublayer that is added to the stream as it is, without a norm behind it."""
    if place.layer is None:
        return False
    layer = model.anatomy.layers[place.layer]
    pairs = {
        "mlps_raw_output": (layer.mlp_raw, layer.mlp_contribution),
        "attentions_raw_output": (layer.attention_raw, layer.attention_contribution),
    }
    raw, added = pairs.get(place.site, (None, None))
    return raw is not None and raw == added


def require_feature_place(model: StandardizedTransformer, place: FeaturePlace) -> None:
    """Refuses a place that a model does not have, or where states are no vectors of one width.

    Raises:
        InvalidRequest: The model has fewer layers.
        Unsupported: The layer has no such site.
    """
    if place.layer is not None and not 0 <= place.layer < model.num_layers:
        raise InvalidRequest(
            f"the dictionary reads the {place}, and {model.name} has layers 0 to {model.num_layers - 1}.",
            "It may be of another model.",
        )
    if place.site in ("queries", "keys", "values", "attention_probabilities"):
        raise Unsupported(f"dictionaries do not read {place.site}.")
    for behind in sites_behind(place):
        require_place(model, behind)
    if place.site == "residual_mid_normalized":
        _norm_of(model)


def read_tokens(
    model: StandardizedTransformer, work: Workload, places: Sequence[FeaturePlace], positions: Sequence[Sequence[int]]
) -> Iterator[TokenStates]:
    """Reads states batch by batch, each prompt in one pass that ends at the last place.

    Args:
        model: The model.
        work: The prompts, with the operations on them.
        places: The places.
        positions: For each prompt, the positions to read in the unpadded prompt.

    Raises:
        InvalidRequest: A state is not finite.
        OutOfMemory: One prompt alone does not fit.
    """
    needed = list(dict.fromkeys(one for place in places for one in sites_behind(place)))

    def read(batch: Batch, numbers: Sequence[int]) -> TokenStates:
        asked = [positions[number] for number in numbers]
        entries = [(row, batch.padding[row] + at) for row, here in enumerate(asked) for at in here]
        rows, columns = torch.tensor(entries, dtype=torch.long, device=model.device).reshape(-1, 2).T
        captures = [Capture(place, take_rows, {"rows": rows, "columns": columns}) for place in needed]
        found = forward(model, batch, work.plan, captures).values
        taken = {place: states.float().flatten(1) for place, states in zip(needed, found, strict=True)}
        for states in taken.values():
            require_finite(states, "states")
        made = {place: combine(model, place, [taken[one] for one in sites_behind(place)]) for place in places}
        return TokenStates(numbers, [len(here) for here in asked], made)

    for _, found in work.run_batches(model, read):
        yield found


def combine(
    model: StandardizedTransformer, place: FeaturePlace, parts: Sequence[Float[Tensor, "token width"]]
) -> Float[Tensor, "token width"]:
    """The states at a place, from those at the hook points behind it."""
    total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    if place.site != "residual_mid_normalized":
        return total
    epsilon, centres = _norm_of(model)
    centred = total - total.mean(-1, keepdim=True) if centres else total
    return centred * (centred.square().mean(-1, keepdim=True) + epsilon).rsqrt()


def _norm_of(model: StandardizedTransformer) -> tuple[float, bool]:
    """The epsilon of a model's norms, and whether they subtract the mean.

    Raises:
        Unsupported: The configuration does not say.
    """
    config = model.module.config.get_text_config(decoder=True)
    for names, centres in ((_ROOT_MEAN_SQUARE, False), (_CENTRED, True)):
        for name in names:
            epsilon = getattr(config, name, None)
            if isinstance(epsilon, float):
                return epsilon, centres
    raise Unsupported(f"the configuration of {model.name} names no epsilon of its norms.")
