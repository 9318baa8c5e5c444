"""`inspect_model` in the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from nnterp_mcp.engine.hook_points import Place, require_place
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.anatomy import LayerAnatomy
from nnterp_mcp.request.sites import SITES
from nnterp_mcp.toolset.inspect_model.params import InspectModelParams
from nnterp_mcp.toolset.inspect_model.result import ForwardCode, InspectModelResult, LayerGroup
from nnterp_mcp.toolset.inspect_model.source import describe_product, read_forward, read_product
from nnterp_mcp.toolset.inspect_model.tree import ModuleNames, Outline
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


_CAPABILITIES = ("names", "lens", "batch", "causal", "attention", "attention_edit")
"""The features that the checks at load may refuse."""


def run(bench: Bench, params: InspectModelParams, job: Job) -> InspectModelResult:
    """Looks at the module, and at the layers where it is the whole model."""
    model = bench.model
    names = ModuleNames.of(model)
    path = "" if params.path is None else names.find(params.path, model.num_layers, bench.handle)
    module = names.modules[path]
    outline = Outline(names, {layer.block.path: layer.kind for layer in model.anatomy.layers})
    weights = list(module.parameters()) or list(model.module.parameters())
    return InspectModelResult(
        model=bench.handle,
        path=path,
        standard=names.name(path) if names.name(path) != path else None,
        kind=type(module).__name__,
        home=type(module).__module__,
        parameters=sum(weight.numel() for weight in module.parameters()),
        dtype=", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights if not weight.is_meta}))
        or str(model.computing_dtype).removeprefix("torch."),
        device=", ".join(sorted({str(weight.device) for weight in weights if not weight.is_meta}))
        or " at ".join(model.computing_on),
        hidden_states=_describe_passage(model, path),
        tensors=outline.tensors(path),
        tree=list(outline.below(path)),
        silent=sum(1 for part in module.modules() if not any(True for _ in part.parameters())),
        layers=[] if path else _group_layers(model),
        attention=model.attention,
        refused=_refused(model),
        source=_source(model, module, params) if params.source or params.start else None,
    )


def _source(model: StandardizedTransformer, module: nn.Module, params: InspectModelParams) -> ForwardCode:
    """A module's forward pass; without a path, the function in which probabilities multiply values."""
    products = [layer.product for layer in model.anatomy.layers if layer.product is not None]
    if params.path is not None:
        return read_forward(module, products, params.start)
    if not products:
        raise Unsupported(f"no layer of {model.name} forms attention probabilities.", "Give the path of a module.")
    return read_product(products[0], params.start)


def _describe_passage(model: StandardizedTransformer, path: str) -> str:
    anatomy = model.anatomy
    sites = [
        anatomy.ln_final,
        *(site for layer in anatomy.layers for site in (layer.block, layer.attention, layer.mlp)),
    ]
    site = next((site for site in sites if site is not None and site.path == path), None)
    if site is None:
        return ""
    entry = f"input {site.entry}" if isinstance(site.entry, int) else f"the keyword {site.entry}"
    leaves = "its output" if site.exit is None else f"element {site.exit} of the {site.width} that it returns"
    return f"Hidden states go in as {entry} and come out as {leaves}."


def _group_layers(model: StandardizedTransformer) -> list[LayerGroup]:
    groups: dict[tuple[object, ...], LayerGroup] = {}
    for layer in model.anatomy.layers:
        group = _describe_layer(model, layer)
        key = (group.kind, group.heads, tuple(group.sites), group.product)
        groups.setdefault(key, group.model_copy(update={"layers": []})).layers.append(layer.index)
    return list(groups.values())


def _describe_layer(model: StandardizedTransformer, layer: LayerAnatomy) -> LayerGroup:
    sites = [site for site in SITES[1:] if _offers(model, Place(site, layer.index))]
    return LayerGroup(
        layers=[layer.index],
        kind=layer.kind,
        heads=layer.num_heads,
        sites=sites,
        lacking=[site for site in SITES[1:] if site not in sites],
        product=describe_product(layer),
    )


def _offers(model: StandardizedTransformer, place: Place) -> bool:
    try:
        require_place(model, place)
    except Unsupported:
        return False
    return True


def _refused(model: StandardizedTransformer) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for capability in _CAPABILITIES:
        try:
            model.require(capability)
        except Unsupported as error:
            reasons[capability] = error.message
    return reasons
