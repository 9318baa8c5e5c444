"""From two models side by side to their largest differences."""

from __future__ import annotations

from collections.abc import Sequence
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

_TEXT = 32
_TOKENS = 2
"""Tokens of a reading."""

_ON_ALIGNMENT = (
    "Other tokens: compared where both have read the same text. A top token contradicts the base's if neither begins "
    "with the other; no KL is defined over two vocabularies, so it is that of tokens with equal texts."
)
_FEW = 2
"""Parts of which an answer has room for more rows each."""


def digest(result: CompareModelsResult) -> CompareModelsAnswer:
    """The largest changes of each kind, and how they compare with a random change and another fine-tune."""
    rows = 2 if len(result.parts) > _FEW else 5
    layers = _layers(result, rows)
    hidden = max(0, len(result.places) - len(layers.rows))
    return CompareModelsAnswer(
        finding=_finding(result),
        notes=_notes(result, hidden),
        model=result.model,
        total=len(result.positions) or len(result.places) or len(result.modules),
        truncated=hidden > 0 or len(result.positions) > rows or len(result.modules) > 1,
        predictions=_predictions(result, rows),
        layers=layers,
        modules=_modules(result, rows if len(result.parts) <= _FEW else 0),
        differences=_differences(result),
        patching=_patching(result, rows),
        texts=_texts(result, rows),
    )


def _finding(result: CompareModelsResult) -> str:
    pair = f"{result.model} against {result.base}"
    said: list[str] = []
    if result.positions:
        said.append(_on_predictions_by_text(result) if result.by_text else _on_predictions(result))
    stream = [place for place in result.places if place.site == "layers_output"]
    if stream:
        said.append(_on_activations(stream))
    if "weights" in result.parts:
        count = len(result.modules)
        most_changed = _on_most_changed(result.modules[0]) if result.modules else ""
        said.append(f"{plural(count, 'weight')} {'differs' if count == 1 else 'differ'}{most_changed}")
    if result.cells:
        best = max(_sublayers(result), key=lambda cell: cell.into_base)
        other = "" if best.other is None else f" (the other's: {percent(best.other)})"
        said.append(
            f"its {best.site} of layer {best.layer} in the base recovers {percent(best.into_base)} of its predictions"
            f"{other}"
        )
    return f"{pair}: {'; '.join(said) or 'texts below'}."


def _on_most_changed(one: ModuleChanged) -> str:
    rank = "" if one.rank is None else f", rank {one.rank}"
    return f", most {one.module} (by {number(brief(one.relative))} of its norm{rank})"


def _on_activations(stream: Sequence[PlaceChanged]) -> str:
    changed = [place for place in stream if place.change > 0]
    if not changed:
        return "no activation differs"
    if all(place.made is None for place in stream):
        most = max(stream, key=lambda place: place.change)
        return f"activations differ most after layer {most.layer} ({number(brief(most.change))} of the norm)"
    most = max(stream, key=lambda place: place.made or 0.0)
    return (
        f"activations differ from layer {changed[0].layer} on, and layer {most.layer} makes most of it "
        f"({number(brief(most.made or 0.0))} of the norm)"
    )


def _on_predictions(result: CompareModelsResult) -> str:
    kl = mean(one.kl for one in result.positions)
    share = mean(one.changed for one in result.positions)
    beside = [
        (name, [value for value in values if value is not None])
        for name, values in (
            ("random change of the same norm and rank", [one.random for one in result.positions]),
            ("other", [one.other for one in result.positions]),
        )
    ]
    controls = ", ".join(f"{name}: {number(brief(mean(values)))}" for name, values in beside if values)
    return (
        f"mean KL {number(brief(kl))} nats{f' ({controls})' if controls else ''}, the top token changes at "
        f"{percent(share)} of positions"
    )


def _on_predictions_by_text(result: CompareModelsResult) -> str:
    measured = [one for one in result.positions if one.characters]
    characters = sum(one.characters or 0 for one in measured)
    base, model = (
        sum((bits or 0.0) * (one.characters or 0) for one, bits in zip(measured, listed, strict=True))
        / max(1, characters)
        for listed in ([one.base_bits for one in measured], [one.bits for one in measured])
    )
    said = f"{number(brief(model))} bits per character against {number(brief(base))}, " if characters else ""
    share = mean(one.changed for one in result.positions)
    kl, shared = (
        mean(one.kl for one in result.positions),
        mean(min(one.shared, one.base_shared) for one in result.positions),
    )
    return (
        f"{said}the top token contradicts the base's at {percent(share)} of {plural(len(result.positions), 'place')} "
        f"that both reach; mean KL {number(brief(kl))} nats given a token that both have ({percent(shared)} of the "
        "probability)"
    )


def _sublayers(result: CompareModelsResult) -> list[CellPatched]:
    """The places at which one sublayer alone is patched; the stream holds all that came before it."""
    return [cell for cell in result.cells if cell.site != "layers_output"] or result.cells


def _notes(result: CompareModelsResult, hidden: int) -> list[str]:
    notes: list[str] = []
    if result.base == result.model:
        notes.append("A model compared with itself differs nowhere: name another one in base.")
    if result.interventions:
        besides = ", but not in the mean difference" if result.differences else ""
        notes.append(f"In all models{besides}: {'; '.join(result.interventions)}.")
    if result.by_text:
        notes.append(_ON_ALIGNMENT)
    if result.left_out:
        reason = "read other tokens" if result.left_out == ["patching"] else "are built otherwise"
        notes.append(f"The models {reason}: {', '.join(result.left_out)} are not compared.")
    if any(place.made is not None for place in result.places):
        notes.append("change: a share of the norm; made by this layer's weights; came from below.")
    if result.steering:
        notes.append(_on_steering(result))
    if result.cells:
        prompts = plural(len(result.patched), "prompt")
        notes.append(
            f"Patching: 1 - KL to the source / unpatched KL, {prompts}, all positions; layers_output has 1 by "
            "construction above the change."
        )
    if result.neutral and result.positions:
        notes.append("Read on neutral texts: give prompts that show the behaviour.")
    if result.others:
        notes.append(f"As a control, other could name {' or '.join(result.others)}.")
    if result.texts:
        notes.append("Texts alone often say as well what was learned: read them, and sample more.")
    if result.uncontrolled:
        notes.append(f"The random change leaves out {plural(result.uncontrolled, 'weight')}, in no linear map.")
    return notes + left_out(hidden, "place", "places")


def _on_steering(result: CompareModelsResult) -> str:
    plain, *tried = result.steering
    best = min(tried, key=lambda one: one.kl)
    without, steered, random = (number(brief(kl)) for kl in (plain.kl, best.kl, best.random))
    verdict = "" if best.kl < min(plain.kl, best.random) else "; it brings the base no nearer"
    return (
        f"Steering, KL(model ‖ base + strength × difference at L{result.steered_layer}): {without} without, {steered} "
        f"at {number(best.strength)}, {random} along random directions{verdict}."
    )


def _any(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)


def _predictions(result: CompareModelsResult, rows: int) -> Table:
    found = result.positions
    columns: list[Column[PositionChanged]] = [
        Column("prompt", lambda one: one.prompt),
        Column("after", lambda one: one.token, Kind.TOKEN),
        Column("position", lambda one: one.position),
        Column("KL", lambda one: one.kl, Kind.BRIEF),
        Column("random", lambda one: one.random, Kind.BRIEF, _any([one.random for one in found])),
        Column("other", lambda one: one.other, Kind.BRIEF, _any([one.other for one in found])),
        Column("base", lambda one: (one.base_top, one.base_p), Kind.TOP),
        Column("model", lambda one: (one.top, one.p), Kind.TOP),
        Column("base bits", lambda one: one.base_bits, Kind.BRIEF, result.by_text),
        Column("bits", lambda one: one.bits, Kind.BRIEF, result.by_text),
    ]
    return tabulate(columns, sorted(found, key=lambda one: -one.kl)[:rows])


def _layers(result: CompareModelsResult, rows: int) -> Table:
    places = result.places
    columns: list[Column[PlaceChanged]] = [
        Column("site", lambda place: place.site),
        Column("layer", lambda place: place.layer),
        Column("change", lambda place: place.change, Kind.BRIEF),
        Column("made", lambda place: place.made, Kind.BRIEF, _any([place.made for place in places])),
        Column("came", lambda place: place.came, Kind.BRIEF, _any([place.came for place in places])),
        Column("cosine", lambda place: place.cosine),
        Column("random", lambda place: place.random, Kind.BRIEF, _any([place.random for place in places])),
        Column("other", lambda place: place.other, Kind.BRIEF, _any([place.other for place in places])),
    ]
    stream = [place for place in places if place.site == "layers_output"]
    shown = sorted(stream, key=lambda place: -(place.made or 0.0))[: rows // 2]
    inner = [place for place in places if place.site != "layers_output"]
    shown += sorted(inner, key=lambda place: -place.change)[: rows - len(shown)]
    return tabulate(columns, [place for place in shown if place.change > 0])


def _modules(result: CompareModelsResult, rows: int) -> Table:
    columns: list[Column[ModuleChanged]] = [
        Column("module", lambda one: one.module),
        Column("‖dW‖/‖W‖", lambda one: one.relative, Kind.BRIEF),
        Column("rank", lambda one: one.rank),
        Column("singular values", lambda one: [brief(value) for value in one.spectrum[:3]] or None),
    ]
    return tabulate(columns, result.modules[:rows])


def _differences(result: CompareModelsResult) -> Table:
    columns: list[Column[LayerDifference]] = [
        Column("layer", lambda one: one.layer),
        Column("positions", lambda one: "1:5" if one.early else "1:"),
        Column("size", lambda one: one.size, Kind.BRIEF),
        Column("lens", lambda one: [token for token, _ in one.top[:_TOKENS]], Kind.TOKEN),
        Column("patchscope", lambda one: [token for token, _ in one.scope[:_TOKENS]], Kind.TOKEN),
        Column("cosine to other", lambda one: one.other, shown=_any([one.other for one in result.differences])),
    ]
    found = [one for one in result.differences if one.size > 0]
    steered = [one for one in found if one.layer == result.steered_layer][:1]
    return tabulate(columns, steered + [one for one in found[-1:] if one not in steered])


def _patching(result: CompareModelsResult, rows: int) -> Table:
    columns: list[Column[CellPatched]] = [
        Column("site", lambda cell: cell.site),
        Column("layer", lambda cell: cell.layer),
        Column("into base", lambda cell: cell.into_base, Kind.HUNDREDTHS),
        Column("into model", lambda cell: cell.into_model, Kind.HUNDREDTHS),
        Column(
            "other into base", lambda cell: cell.other, Kind.HUNDREDTHS, _any([cell.other for cell in result.cells])
        ),
    ]
    first = next((cell for cell in result.cells if cell.site == "layers_output" and cell.into_base > 0.5), None)
    shown = sorted(_sublayers(result), key=lambda cell: -cell.into_base)[: rows - 1]
    return tabulate(columns, [*shown, *([first] if first is not None and first not in shown else [])])


def _texts(result: CompareModelsResult, rows: int) -> Table:
    room = _TEXT if len(result.parts) > _FEW else 4 * _TEXT
    strength = number(result.steered_strength or 1.0)
    columns: list[Column[TextPair]] = [
        Column("prompt", lambda pair: pair.prompt),
        Column("base", lambda pair: elided(pair.base, room), Kind.TEXT),
        Column("model", lambda pair: elided(pair.model, room), Kind.TEXT),
        Column(
            f"base + {strength} × difference at L{result.steered_layer}",
            lambda pair: None if pair.steered is None else elided(pair.steered, room),
            Kind.TEXT,
            any(pair.steered is not None for pair in result.texts),
        ),
    ]
    return tabulate(columns, result.texts[:rows])
