"""Fit of a dictionary to a model at a hook point: sparsity, reconstruction error, and loss recovered by splicing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.engine.edits import Patched, StateEdit
from nnterp_mcp.engine.forward import Plan
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.token_spans import Reach
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, NnterpError
from nnterp_mcp.experiments.features.dictionary import Dictionary
from nnterp_mcp.experiments.features.readings import (
    is_added_as_is,
    read_tokens,
    require_feature_place,
    sites_behind,
)
from nnterp_mcp.experiments.text_scores import score_texts
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.feature_sites import FeaturePlace, FeatureSite

LARGEST_FVU = 1.0
"""Fraction of variance unexplained above which a dictionary says less than the mean of the states."""

LARGEST_RATIO = 2.0
"""Ratio of active features to declared ones above which a dictionary does not read what it was trained on."""

_CLEARLY = 0.95
"""Share of the FVU at the declared hook point below which another one fits clearly better."""

_SAMPLE = 320
"""Tokens on which hook points are compared, at most."""

_CHUNK = 1 << 25
"""Features that are computed at once."""

_INPUTS: tuple[FeatureSite, ...] = (
    "layers_output",
    "layers_input",
    "residual_mid",
    "residual_mid_normalized",
    "mlps_input",
    "heads_output",
    "attentions_output",
    "attentions_raw_output",
    "mlps_output",
    "mlps_raw_output",
)
"""Where dictionaries read."""

_OUTPUTS: tuple[FeatureSite, ...] = ("mlps_output", "mlps_raw_output", "attentions_output", "attentions_raw_output")
"""Where transcoders write."""

_CONTRIBUTIONS: dict[FeatureSite, FeatureSite] = {
    "mlps_raw_output": "mlps_output",
    "attentions_raw_output": "attentions_output",
}
"""The site that is added to the residual stream, by the site of a sublayer's computation."""


@dataclass(frozen=True)
class Reconstructed:
    """Sparsity and reconstruction error of a dictionary on some states.

    Attributes:
        l0: Active features at a token, in the mean.
        fvu: The fraction of the states' variance that it does not explain; 1 is what their mean would do.
        cosine: Between states and reconstructions, in the mean.
        silent: The share of features that are active at no token.
    """

    l0: float
    fvu: float
    cosine: float
    silent: float

    def faults(self, declared_l0: float | None) -> list[str]:
        """Signs that the hook point is the wrong one, as sentences; empty if there are none."""
        found: list[str] = []
        if not self.fvu <= LARGEST_FVU:
            found.append(f"the reconstruction explains less than the mean of the states (FVU {self.fvu:.3g})")
        ratio = 1.0 if not declared_l0 else max(self.l0, 1e-9) / declared_l0
        if not 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO:
            found.append(f"{self.l0:.3g} features are active at a token, and {declared_l0:.3g} are declared")
        return found


@dataclass(frozen=True)
class Losses:
    """Mean loss for each next token, in nats.

    Attributes:
        clean: Of the model.
        spliced: With the reconstruction in the states' place.
        zeroed: With zeros in the states' place.
    """

    clean: float
    spliced: float
    zeroed: float

    @property
    def recovered(self) -> float | None:
        """The share of the loss from zeroing that the reconstruction avoids; None where zeroing does no harm."""
        harm = self.zeroed - self.clean
        return None if harm <= 0 else (self.zeroed - self.spliced) / harm


def measure_fit(
    made: Dictionary, read: Float[Tensor, "token input"], written: Float[Tensor, "token output"]
) -> tuple[Reconstructed, Float[Tensor, "token output"]]:
    """Encodes states and compares what is decoded with what it stands for.

    Args:
        made: The dictionary.
        read: What it reads.
        written: What it reconstructs; of an autoencoder the same.

    Returns:
        The fit, and the reconstruction.
    """
    active, back = _reconstruct(made, read)
    return _compare(active, back, written), back


def _reconstruct(
    made: Dictionary, read: Float[Tensor, "token input"]
) -> tuple[Int[Tensor, " latent"], Float[Tensor, "token output"]]:
    """The number of tokens at which each feature is active, and the reconstruction."""
    active, parts = torch.zeros(made.latents, dtype=torch.long, device=read.device), list[Tensor]()
    for some in read.split(max(1, _CHUNK // made.latents)):
        check_cancelled()
        features = made.encode(some)
        active += (features > 0).sum(0)
        parts.append(made.decode(features, some))
    return active, torch.cat(parts)


def _compare(
    active: Int[Tensor, " latent"], back: Float[Tensor, "token output"], written: Float[Tensor, "token output"]
) -> Reconstructed:
    made, target = back.double(), written.double()
    variance = (target - target.mean(0)).square().sum()
    return Reconstructed(
        l0=float(active.sum()) / len(back),
        fvu=float((target - made).square().sum() / variance),
        cosine=float(torch.nn.functional.cosine_similarity(target, made, dim=-1).mean()),
        silent=float((active == 0).double().mean()),
    )


def read_all(
    model: StandardizedTransformer, work: Workload, places: Sequence[FeaturePlace]
) -> dict[FeaturePlace, Float[Tensor, "token width"]]:
    """The states of every token but each prompt's first, in the order of the prompts.

    The first token is left out, which is the BOS token in most models and an attention sink in nearly all: its state is
    unlike any other, and dictionaries are not trained on it.

    Args:
        model: The model.
        work: The prompts.
        places: The places.
    """
    positions = [range(1, len(prompt.ids)) for prompt in work.prompts]
    rows: dict[FeaturePlace, dict[int, Tensor]] = {place: {} for place in places}
    for found in read_tokens(model, work, places, positions):
        for place, states in found.states.items():
            rows[place] |= zip(found.prompts, states.split(list(found.counts)), strict=True)
    return {place: torch.cat([by[number] for number in sorted(by)]) for place, by in rows.items()}


@dataclass(frozen=True)
class Candidate:
    """A hook point where a dictionary may belong, and how it fits there on a sample of the tokens.

    Attributes:
        place: What it reads there.
        out: What a transcoder writes; None for an autoencoder.
        fit: The fit.
    """

    place: FeaturePlace
    out: FeaturePlace | None
    fit: Reconstructed


def compare_places(
    model: StandardizedTransformer, work: Workload, made: Dictionary, place: FeaturePlace, out: FeaturePlace | None
) -> list[Candidate]:
    """Fits of a dictionary at every hook point whose states have its width, the best first.

    The hook points are those of the layer, and the same site of the layers before and after it. At all of them the
    same tokens are reconstructed, a sample, so that their fractions of variance unexplained can be compared.

    Args:
        model: The model.
        work: The prompts.
        made: The dictionary.
        place: The place that it is said to read.
        out: The place that a transcoder is said to write to.
    """
    assert place.layer is not None
    layer = place.layer
    outputs = [] if out is None else [*dict.fromkeys([out, *(FeaturePlace(site, layer) for site in _OUTPUTS)])]
    # The output of the layer before is the input of this one.
    near = [layer + 1] if place.site == "layers_output" else [layer - 1, layer + 1]
    beyond = [FeaturePlace(place.site, at) for at in near] if out is None else []
    places = [*dict.fromkeys([place, *(FeaturePlace(site, layer) for site in _INPUTS), *beyond])]
    asked = [one for one in dict.fromkeys([*places, *outputs]) if _has(model, one)]
    states = {at: _sample(found) for at, found in read_all(model, work, asked).items()}
    found: list[Candidate] = []
    for at in (at for at in places if at in states and states[at].shape[1] == made.encoder.shape[1]):
        encoded, back = _reconstruct(made, states[at])
        targets = [at] if out is None else [to for to in outputs if to in states and to != at]
        found += [
            Candidate(at, None if out is None else to, _compare(encoded, back, states[to]))
            for to in targets
            if states[to].shape[1] == made.decoder.shape[1]
        ]
    return sorted(found, key=lambda one: one.fit.fvu)


def list_others(
    model: StandardizedTransformer, found: Sequence[Candidate], place: FeaturePlace, out: FeaturePlace | None
) -> list[Candidate]:
    """The hook points other than the one that a dictionary is said to read, each once.

    The output of a sublayer has two names where no norm lies behind it.

    Args:
        model: The model.
        found: The hook points, the best first.
        place: The place that the dictionary is said to read.
        out: The place that a transcoder is said to write to.
    """

    def contribution(at: FeaturePlace | None) -> FeaturePlace | None:
        return at._replace(site=_CONTRIBUTIONS[at.site]) if at is not None and is_added_as_is(model, at) else at

    listed = {(contribution(place), contribution(out)): None} | dict.fromkeys(
        (contribution(one.place), contribution(one.out)) for one in found
    )
    by_name = {(contribution(one.place), contribution(one.out)): one for one in reversed(found)}
    return [by_name[name] for name in list(listed)[1:]]


def find_better(found: Sequence[Candidate], place: FeaturePlace, out: FeaturePlace | None) -> Candidate | None:
    """The hook point that a dictionary fits clearly better than the one that it is said to read, if there is one.

    Args:
        found: The hook points, the best first.
        place: The place that it is said to read.
        out: The place that a transcoder is said to write to.
    """
    own = next((one.fit.fvu for one in found if (one.place, one.out) == (place, out)), None)
    best = found[0] if found else None
    return best if best is not None and own is not None and best.fit.fvu < _CLEARLY * own else None


def _sample(states: Float[Tensor, "token width"]) -> Float[Tensor, "some width"]:
    return states[:: max(1, len(states) // _SAMPLE)][:_SAMPLE]


def _has(model: StandardizedTransformer, place: FeaturePlace) -> bool:
    try:
        require_feature_place(model, place)
    except NnterpError:
        return False
    return True


def measure_losses(
    model: StandardizedTransformer, work: Workload, place: FeaturePlace, back: Float[Tensor, "token width"]
) -> Losses:
    """The loss of the model, with reconstructions in the states' place, and with zeros.

    Args:
        model: The model.
        work: The texts.
        place: Where the reconstructions go.
        back: They, for every token but the first of each text.
    """
    spliced = splice(model, work, place, back)
    zeroed = splice(model, work, place, torch.zeros_like(back))
    loss = [_mean_loss(model, replace(work, plan=plan)) for plan in (work.plan, spliced, zeroed)]
    return Losses(*loss)


def _mean_loss(model: StandardizedTransformer, work: Workload) -> float:
    return -fmean(value for scores in score_texts(model, work) for value in scores)


def splice(
    model: StandardizedTransformer, work: Workload, place: FeaturePlace, states: Float[Tensor, "token width"]
) -> Plan:
    """A plan that has given states in a place's stead, at every token but the first of each prompt.

    The residual stream between attention and MLP is set by what attention adds to it.

    Args:
        model: The model.
        work: The prompts.
        place: The place.
        states: The states, in the order of the prompts.

    Raises:
        InvalidRequest: It is a place that is only read.
    """
    if place.site == "residual_mid_normalized":
        raise InvalidRequest(f"states at {place.site} are read and not replaced.")
    target = sites_behind(place)[-1]
    if place.site == "residual_mid":
        entering = FeaturePlace("layers_input", place.layer)
        states = states - read_all(model, work, [entering])[entering]
    layer = model.anatomy.layers[target.layer] if target.layer is not None else None
    heads = layer.num_heads if layer is not None and place.site == "heads_output" else 0
    shaped = states.unflatten(-1, (heads, -1)) if heads else states
    return Plan({target: [_replaced(work, target, shaped)]}, ["reconstruction"])


def _replaced(work: Workload, target: Place, states: Tensor) -> StateEdit:
    counts = [len(prompt.ids) - 1 for prompt in work.prompts]
    indices = [prompt.index for prompt in work.prompts]
    own: Mapping[int, Tensor] = dict(zip(indices, states.split(counts), strict=True))
    index = {
        (at, position + 1): position for at, count in zip(indices, counts, strict=True) for position in range(count)
    }
    reach = Reach({at: range(1, count + 1) for at, count in zip(indices, counts, strict=True)})
    return StateEdit(target, reach, Patched(own, index))
