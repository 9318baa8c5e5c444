"""From two models side by side to their largest differences."""

from __future__ import annotations

from statistics import mean

from nnterp_mcp.formatting import brief, elided, number, percent, plural
from nnterp_mcp.render import left_out
from nnterp_mcp.table import Column, Kind, Table, tabulate
from nnterp_mcp.toolset.compare_models.result import (
    CellPatched,
    CompareModelsAnswer,
    CompareModelsResult,
    LayerDifference,
    ModuleChanged,
    PlaceChanged,
    PositionChanged,
    TextPair,
)

_ROWS = 4
_LAYERS = 6
_TEXT = 70
_NOTHING: Table = tabulate([], [])


def digest(result: CompareModelsResult) -> CompareModelsAnswer:
    """The largest changes of each kind, and how they compare with a random change."""
    hidden = max(0, len(result.places) - _LAYERS)
    return CompareModelsAnswer(
        finding=_finding(result),
        notes=_notes(result, hidden),
        model=result.model,
        total=len(result.positions) or len(result.places) or len(result.modules),
        truncated=hidden > 0 or len(result.positions) > _ROWS or len(result.modules) > _ROWS,
        predictions=_predictions(result),
        layers=_layers(result),
        modules=_modules(result),
        differences=_differences(result),
        patching=_patching(result),
        texts=_texts(result),
    )


def _finding(result: CompareModelsResult) -> str:
    pair = f"{result.model} against {result.base}"
    said: list[str] = []
    if result.positions:
        said.append(_on_predictions(result))
    stream = [place for place in result.places if place.site == "layers_output"]
    if stream:
        changed = [place for place in stream if place.change > 0]
        if not changed:
            said.append("no activation differs")
        else:
            most = max(stream, key=lambda place: place.made or 0.0)
            said.append(
                f"activations differ from layer {changed[0].layer} on, and layer {most.layer} makes most of it "
                f"({number(brief(most.made or 0.0))} of the norm)"
            )
    if "weights" in result.parts:
        count = len(result.modules)
        most_changed = f", most {result.modules[0].module}" if result.modules else ""
        said.append(f"{plural(count, 'weight')} {'differs' if count == 1 else 'differ'}{most_changed}")
    if result.cells:
        best = max(_sublayers(result), key=lambda cell: cell.into_base)
        said.append(
            f"its {best.site} of layer {best.layer} in the base recovers {percent(best.into_base)} of its predictions"
        )
    return f"{pair}: {'; '.join(said) or 'texts below'}."


def _on_predictions(result: CompareModelsResult) -> str:
    kl = mean(one.kl for one in result.positions)
    share = mean(one.changed for one in result.positions)
    randoms = [one.random for one in result.positions if one.random is not None]
    control = f" (random change of the same norm and rank: {number(brief(mean(randoms)))})" if randoms else ""
    return f"mean KL {number(brief(kl))} nats{control}, the top token changes at {percent(share)} of positions"


def _sublayers(result: CompareModelsResult) -> list[CellPatched]:
    """The places at which one sublayer alone is patched; the stream holds all that came before it."""
    return [cell for cell in result.cells if cell.site != "layers_output"] or result.cells


def _notes(result: CompareModelsResult, hidden: int) -> list[str]:
    notes: list[str] = []
    if result.base == result.model:
        notes.append("A model compared with itself differs nowhere: name another one in base.")
    if result.left_out:
        notes.append(f"The models are built otherwise: {', '.join(result.left_out)} are not compared.")
    if any(place.made is not None for place in result.places):
        notes.append(
            "change: ‖h' - h‖ / ‖h‖, mean over tokens; made: by this layer's own weights on the same input; came: what "
            "the base's layer makes of the changed input."
        )
    if result.cells:
        prompts = plural(len(result.patched), "prompt")
        notes.append(
            f"Recovery on {prompts}, all positions patched: 1 - KL to the source over the unpatched KL. From the layer "
            "on that makes the change, layers_output recovers all by construction; below 0 is farther away."
        )
    if result.neutral and result.positions:
        notes.append("Read on neutral texts: give prompts that show the behaviour.")
    if result.texts:
        notes.append("Comparing texts alone is often as good at saying what was learned: read them, and sample more.")
    if result.uncontrolled:
        notes.append(f"The random change leaves out {plural(result.uncontrolled, 'weight')} that are no linear maps.")
    return notes + left_out(hidden, "place", "places")


def _predictions(result: CompareModelsResult) -> Table:
    columns: list[Column[PositionChanged]] = [
        Column("prompt", lambda one: one.prompt),
        Column("after", lambda one: one.token, Kind.TOKEN),
        Column("position", lambda one: one.position),
        Column("KL", lambda one: one.kl, Kind.BRIEF),
        Column("random", lambda one: one.random, Kind.BRIEF, any(one.random is not None for one in result.positions)),
        Column("base", lambda one: (one.base_top, one.base_p), Kind.TOP),
        Column("model", lambda one: (one.top, one.p), Kind.TOP),
    ]
    return tabulate(columns, sorted(result.positions, key=lambda one: -one.kl)[:_ROWS])


def _layers(result: CompareModelsResult) -> Table:
    columns: list[Column[PlaceChanged]] = [
        Column("site", lambda place: place.site),
        Column("layer", lambda place: place.layer),
        Column("change", lambda place: place.change, Kind.BRIEF),
        Column("made", lambda place: place.made, Kind.BRIEF),
        Column("came", lambda place: place.came, Kind.BRIEF),
        Column("cosine", lambda place: place.cosine),
        Column("random", lambda place: place.random, Kind.BRIEF, any(p.random is not None for p in result.places)),
    ]
    stream = [place for place in result.places if place.site == "layers_output"]
    shown = sorted(stream, key=lambda place: -(place.made or 0.0))[: _LAYERS - 3]
    inner = [place for place in result.places if place.site != "layers_output"]
    shown += stream[-1:] if stream[-1:] and stream[-1] not in shown else []
    shown += sorted(inner, key=lambda place: -place.change)[:2]
    return tabulate(columns, [place for place in shown if place.change > 0])


def _modules(result: CompareModelsResult) -> Table:
    columns: list[Column[ModuleChanged]] = [
        Column("module", lambda one: one.module),
        Column("‖dW‖/‖W‖", lambda one: one.relative, Kind.BRIEF),
        Column("rank", lambda one: one.rank),
        Column("singular values", lambda one: [brief(value) for value in one.spectrum[:3]] or None),
    ]
    return tabulate(columns, result.modules[:_ROWS])


def _differences(result: CompareModelsResult) -> Table:
    columns: list[Column[LayerDifference]] = [
        Column("layer", lambda one: one.layer),
        Column("size", lambda one: one.size, Kind.BRIEF),
        Column("promotes", lambda one: [token for token, _ in one.top[:4]], Kind.TOKEN),
    ]
    found = [one for one in result.differences if one.size > 0]
    shown = sorted(sorted(found, key=lambda one: -one.size)[:3], key=lambda one: one.layer)
    return tabulate(columns, shown)


def _patching(result: CompareModelsResult) -> Table:
    columns: list[Column[CellPatched]] = [
        Column("site", lambda cell: cell.site),
        Column("layer", lambda cell: cell.layer),
        Column("into base", lambda cell: cell.into_base, Kind.HUNDREDTHS),
        Column("into model", lambda cell: cell.into_model, Kind.HUNDREDTHS),
    ]
    first = next((cell for cell in result.cells if cell.site == "layers_output" and cell.into_base > 0.5), None)
    shown = sorted(_sublayers(result), key=lambda cell: -cell.into_base)[:_ROWS]
    return tabulate(columns, [*shown, *([first] if first is not None and first not in shown else [])])


def _texts(result: CompareModelsResult) -> Table:
    columns: list[Column[TextPair]] = [
        Column("prompt", lambda pair: pair.prompt),
        Column("base", lambda pair: elided(pair.base, _TEXT), Kind.TEXT),
        Column("model", lambda pair: elided(pair.model, _TEXT), Kind.TEXT),
        Column(
            f"base + difference at L{result.steered_layer}",
            lambda pair: None if pair.steered is None else elided(pair.steered, _TEXT),
            Kind.TEXT,
            any(pair.steered is not None for pair in result.texts),
        ),
    ]
    return tabulate(columns, result.texts[:3])
