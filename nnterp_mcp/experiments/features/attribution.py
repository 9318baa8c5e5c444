"""Attribution of an answer to features: directly through the residual stream, and by gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.hook_points import by_position
from nnterp_mcp.engine.readouts.metrics import MetricName, make_metric
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.attribution.direct_logit import DirectLogits, LogitPart, attribute_each
from nnterp_mcp.experiments.attribution.recorded_pass import RecordedPass, gradients, record
from nnterp_mcp.experiments.attribution.sublayer_writes import find_writes
from nnterp_mcp.experiments.features.dictionary import Dictionary
from nnterp_mcp.experiments.features.effects import writes_to_stream
from nnterp_mcp.experiments.features.readings import combine, read_tokens, sites_behind
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch
from nnterp_mcp.request.feature_sites import FeaturePlace

_ROUNDING = 1e-3
"""The share of the largest contribution by which the parts may miss the metric, in float32."""


@dataclass(frozen=True)
class PlacedDictionary:
    """A dictionary, with where it belongs.

    Attributes:
        made: The dictionary.
        place: The place that it reads.
        out: The place that a transcoder writes to; None for an autoencoder.
    """

    made: Dictionary
    place: FeaturePlace
    out: FeaturePlace | None

    @property
    def written(self) -> FeaturePlace:
        """The place whose states it reconstructs."""
        return self.out or self.place


def attribute_features(
    model: StandardizedTransformer,
    work: Workload,
    target_sets: Sequence[Sequence[Sequence[Sequence[int]]]],
    placed: PlacedDictionary,
) -> list[DirectLogits]:
    """Splits a logit after each prompt's last token, or the difference of two, into contributions of features.

    A feature contributes its activation times its decoder row, through the frozen final norm to the logits. The
    features, the decoder's bias and the reconstruction error together contribute what the reconstructed states do; the
    other parts are those of `attribute_directly`. Direct paths only: what later layers read of a feature counts there.

    Args:
        model: The model.
        work: The prompts.
        target_sets: The targets of each prompt, as in `attribute_directly`, once for each attribution.
        placed: The dictionary.

    Returns:
        The attribution of each set; features that are active in none of the prompts are left out.

    Raises:
        Unsupported: The dictionary does not reconstruct something that is added to the residual stream, or the parts
            do not add up.
    """
    written, layer = placed.written, placed.written.layer
    if not writes_to_stream(model, placed.made, written):
        raise Unsupported(
            f"the {written} of {model.name} is not added to the residual stream as it is, so that its features have no "
            "direct effect on the logits.",
            "Attribute by gradients.",
        )
    ends = [[len(prompt.ids) - 1] for prompt in work.prompts]
    read, target = _read_ends(model, work, placed, ends)
    features = placed.made.encode(read).double()
    back = placed.made.decode(features.to(read), read).double()
    sublayers = [] if layer is None or _replaces_stream(written) else [layer]
    found = attribute_each(model, work, target_sets, "sublayer" if sublayers else "layer", layers=sublayers or "all")
    return [_inserted(model, placed, one, features, read, target.double(), back) for one in found]


def _read_ends(
    model: StandardizedTransformer, work: Workload, placed: PlacedDictionary, ends: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "prompt input"], Float[Tensor, "prompt output"]]:
    """The states that the dictionary reads and reconstructs at the last token of each prompt."""
    rows: dict[int, tuple[Tensor, Tensor]] = {}
    for found in read_tokens(model, work, list(dict.fromkeys([placed.place, placed.written])), ends):
        own = zip(found.states[placed.place], found.states[placed.written], strict=True)
        rows |= zip(found.prompts, own, strict=True)
    pairs = [rows[number] for number in range(len(rows))]
    return torch.stack([read for read, _ in pairs]), torch.stack([written for _, written in pairs])


def _replaces_stream(place: FeaturePlace) -> bool:
    return place.site in ("layers_input", "layers_output", "token_embeddings")


def _replaced(part: LogitPart, place: FeaturePlace) -> bool:
    """True for a part of the states at a place."""
    layer = -1 if place.layer is None else place.layer
    if place.site in ("attentions_output", "attentions_raw_output"):
        return part.kind == "attention" and part.layer == layer
    if place.site in ("mlps_output", "mlps_raw_output"):
        return part.kind == "mlp" and part.layer == layer
    if part.kind == "embeddings" or (part.kind == "positions" and place.site != "token_embeddings"):
        return True
    before = part.layer is not None and part.layer < layer + (place.site == "layers_output")
    return before or (place.site == "residual_mid" and part.kind == "attention" and part.layer == layer)


def _inserted(
    model: StandardizedTransformer,
    placed: PlacedDictionary,
    found: DirectLogits,
    features: Float[Tensor, "prompt latent"],
    read: Float[Tensor, "prompt input"],
    target: Float[Tensor, "prompt output"],
    back: Float[Tensor, "prompt output"],
) -> DirectLogits:
    """The attribution with the dictionary's parts in place of those of the states that it reconstructs.

    Raises:
        Unsupported: They do not add up to the metric.
    """
    made, layer = placed.made, placed.written.layer
    streams = found.streams.to(target) * _write_factor(model, placed.written)
    active = (features != 0).any(0).nonzero()[:, 0]
    scale = made.write_scales(read).double()
    values = features[:, active] * scale * (streams @ made.decoder[active].double().T)
    whole, reconstructed = (target * streams).sum(-1), (back * streams).sum(-1)
    added = {
        LogitPart("decoder bias", layer): reconstructed - values.sum(-1),
        LogitPart("reconstruction error", layer): whole - reconstructed,
    }
    left = [at for at, part in enumerate(found.parts) if not _replaced(part, placed.written)]
    parts = [LogitPart("feature", layer, int(at)) for at in active]
    columns = [values.cpu(), torch.stack(list(added.values()), 1).cpu(), found.values[:, left]]
    together = torch.cat(columns, 1)
    gaps = (together.sum(1) - found.metric).abs()
    if bool((gaps > _ROUNDING * together.abs().amax(1).clamp_min(1)).any()):
        raise Unsupported(
            f"the features at the {placed.written} of {model.name} and its other parts miss the logits by "
            f"{float(gaps.max()):.3g}.",
            "Attribute by gradients.",
        )
    named = [*parts, *added, *(found.parts[at] for at in left)]
    return replace(found, parts=named, values=together, error=float(gaps.max()))


def _write_factor(model: StandardizedTransformer, place: FeaturePlace) -> float:
    """The factor between a sublayer's site and what it adds to the residual stream; 1 in nearly all models."""
    if place.layer is None or place.site not in ("attentions_output", "mlps_output"):
        return 1.0
    writes = find_writes(model)[place.layer]
    sublayer = None if writes is None else writes.sublayers.get(place.site)
    return 1.0 if sublayer is None else sublayer.factor


@dataclass(frozen=True)
class FeatureSlopes:
    """Features of one prompt, and the metric's slopes along them; the first token has none.

    Attributes:
        metric: The metric.
        features: The activations.
        slopes: The change of the metric with an activation, at the token where it is.
        error: Reconstruction error times the metric's slope along the states, summed over tokens.
    """

    metric: float
    features: Float[Tensor, "position latent"]
    slopes: Float[Tensor, "position latent"]
    error: float

    @property
    def products(self) -> Float[Tensor, "position latent"]:
        """Activation times slope."""
        return self.features * self.slopes


def find_slopes(
    model: StandardizedTransformer,
    work: Workload,
    targets: Sequence[Sequence[Sequence[int]]],
    placed: PlacedDictionary,
    metric: MetricName = "logit_difference",
) -> list[FeatureSlopes]:
    """The metric's slopes along the features at every token but the first, one backward pass for each prompt.

    The slope is that of an edit of the feature: the states move along its decoder row, and nothing else moves with
    it. So activation times slope is, to first order, what the metric loses where the feature is set to zero.

    Args:
        model: The model.
        work: The prompts.
        targets: Token ids for each prompt: of the answer, then of the alternative.
        placed: The dictionary.
        metric: The metric after the last token.

    Source: Marks et al., "Sparse Feature Circuits" (2024).
    """

    def run(batch: Batch, numbers: Sequence[int]) -> list[FeatureSlopes]:
        measure = make_metric(metric, targets[numbers[0]])
        with gradients(model.module):
            found = record_features(model, batch, work, placed)
            value = measure(found.logits)
            (gradient,) = torch.autograd.grad(value.sum(), [found.states[sites_behind(placed.written)[-1]]])
        return [slopes_of(model, placed, found, gradient, float(value.detach()))]

    return replace(work, batch_size=1).run(model, run)


def record_features(
    model: StandardizedTransformer, batch: Batch, work: Workload, placed: PlacedDictionary
) -> RecordedPass:
    """A recorded pass with the states that a dictionary reads and reconstructs."""
    return record(model, batch, work.plan, [*sites_behind(placed.place), *sites_behind(placed.written)])


@torch.no_grad()
def slopes_of(
    model: StandardizedTransformer, placed: PlacedDictionary, found: RecordedPass, gradient: Tensor, metric: float
) -> FeatureSlopes:
    """The features of a recorded pass, with slopes from the gradient along the states that they write to."""
    read, written = _states_at(model, placed.place, found), _states_at(model, placed.written, found)
    along = by_position(gradient, sites_behind(placed.written)[-1].site)[0].float().flatten(1)
    features = placed.made.encode(read)
    slopes = along @ placed.made.decoder.T * placed.made.write_scales(read)
    error = (written - placed.made.decode(features, read)) * along
    features[0], slopes[0] = 0, 0
    return FeatureSlopes(metric, features, slopes, float(error[1:].sum()))


@torch.no_grad()
def features_of(
    model: StandardizedTransformer, placed: PlacedDictionary, found: RecordedPass
) -> Float[Tensor, "position latent"]:
    """The features of a recorded pass at every token."""
    return placed.made.encode(_states_at(model, placed.place, found))


def _states_at(
    model: StandardizedTransformer, place: FeaturePlace, found: RecordedPass
) -> Float[Tensor, "token width"]:
    behind = sites_behind(place)
    parts = [by_position(found.states[one].detach(), one.site)[0].float().flatten(1) for one in behind]
    return combine(model, place, parts)
