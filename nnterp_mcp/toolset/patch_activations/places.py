"""The places of a call's patches: its positions, the ends of its paths, and its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.features.patching import FeaturePatcher, FeatureRuns
from nnterp_mcp.experiments.patching.activation_patching import Patcher
from nnterp_mcp.experiments.patching.alignment import LabelledSpans
from nnterp_mcp.experiments.patching.path_patching import Receiver
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.corruption import Ablated
from nnterp_mcp.request.positions import PositionSpec
from nnterp_mcp.request.selectors import resolve_indices, resolve_layers
from nnterp_mcp.toolset.patch_activations.params import PatchActivationsParams
from nnterp_mcp.toolset.patch_activations.result import EVERYWHERE

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


def find_positions(params: PatchActivationsParams) -> Sequence[PositionSpec] | LabelledSpans:
    """The tokens of the grid, or labelled spans."""
    asked: Any = params.positions
    whole = isinstance(params.corrupted, Ablated) or params.features  # a part is ablated as a whole
    if asked == ("all",) and whole:
        return {EVERYWHERE: (asked, asked)}
    if isinstance(asked, Mapping):
        return {label: (span.clean, span.corrupted) for label, span in asked.items()}
    return asked


def find_receivers(model: StandardizedTransformer, params: PatchActivationsParams) -> list[Receiver] | None:
    """The ends of paths; None where every path counts."""
    if params.receivers is None:
        return None
    return [
        Receiver(Place(receiver.site, layer), _heads(model, receiver.heads, layer))
        for receiver in params.receivers
        for layer in resolve_layers(receiver.layers, model.num_layers, model.name)
    ]


def _heads(model: StandardizedTransformer, asked: Any, layer: int) -> list[int] | None:
    if asked is None:
        return None
    return resolve_indices(asked, model.anatomy.layers[layer].num_heads, "head", f"layer {layer} of {model.name}")


def patch_features(bench: Bench, params: PatchActivationsParams, patcher: Patcher, work: Workload) -> FeatureRuns:
    """Patches the features that a call names together, and their controls.

    Raises:
        InvalidRequest: There is no such dictionary or feature, or none of them is active.
        Unsupported: The call takes means, or the dictionary reconstructs a place that is only read.
    """
    named = params.features
    basis = bench.dictionaries.find_basis(named[0].dictionary, named[0].layers)
    features = list(dict.fromkeys(one for cell in named for one in cell.features))
    chosen = resolve_indices(features, basis.latents, "feature", basis.name)
    return FeaturePatcher(patcher, basis).compare(chosen, work)
