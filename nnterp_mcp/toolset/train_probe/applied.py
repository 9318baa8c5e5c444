"""The answer of `train_probe` for a saved probe or vector on other prompts."""

from __future__ import annotations

from collections.abc import Callable

from nnterp_mcp.contract import Measured
from nnterp_mcp.formatting import elided, number, plural, quoted, spread
from nnterp_mcp.render import PER_LAYER, by_layer, in_force, left_out, on_means
from nnterp_mcp.request.operations import describe_positions
from nnterp_mcp.table import Column, tabulate
from nnterp_mcp.toolset.train_probe.result import AppliedLayer, AppliedProbe, TrainProbeAnswer, TrainProbeResult

_BUDGET = 420
"""Tokens that the rows of the table and the lines of all layers may take, about."""

_ROW = 40
"""Tokens of a row, about."""

_GROUPS = 4
"""Groups whose mean projections the table shows."""


def digest_applied(result: TrainProbeResult, applied: AppliedProbe) -> TrainProbeAnswer:
    """The layer that the fit chose, and some others."""
    best, layers = chosen_layer(result, applied), result.applied_layers
    marks = [layers.index(best), 0, len(layers) - 1]
    room = max(3, (_BUDGET - 2 * PER_LAYER * len(layers)) // _ROW)
    shown = [layers[at] for at in spread(range(len(layers)), marks, room)]
    hidden = len(layers) - len(shown)
    return TrainProbeAnswer(
        finding=_finding(result, applied, best),
        notes=_notes(result, applied, hidden),
        model=result.model,
        total=len(layers),
        truncated=hidden > 0,
        table=tabulate(_columns(best), shown),
        by_layer=_every_layer(layers) if hidden else {},
    )


def chosen_layer(result: TrainProbeResult, applied: AppliedProbe) -> AppliedLayer:
    """The layer that told unseen prompts apart best when the probe was made, else that of the most extreme AUC here."""
    card = applied.card
    rates = dict(zip(card.layers, card.held_out, strict=False))

    def merit(layer: AppliedLayer) -> float:
        here = max((abs(pair.auc - 0.5) for pair in layer.pairs[:1]), default=0.0)
        return rates.get(layer.layer, 0.0) if rates and layer.layer is not None else here

    top = max(map(merit, result.applied_layers))
    equals = [layer for layer in result.applied_layers if merit(layer) == top]
    return equals[len(equals) // 2]


def _finding(result: TrainProbeResult, applied: AppliedProbe, best: AppliedLayer) -> str:
    card = applied.card
    choice = "the best on held-out prompts when it was made" if card.held_out else "the AUC farthest from 0.5 here"
    where = f"layer {best.layer}" + (f" ({choice})" if len(result.applied_layers) > 1 else "")
    figures: list[str] = []
    if best.accuracy is not None:
        figures.append(
            f"accuracy {_interval(best.accuracy)}, against {number(result.majority)} for the largest group alone"
        )
    elif best.threshold is not None:
        shares = ", ".join(f"{number(group.assigned or 0.0)} of {quoted(elided(group.group))}" for group in best.groups)
        figures.append(f"assigned to {quoted(elided(card.classes[0]))}: {shares}")
    for pair in best.pairs[:1]:
        auc = Measured(mean=pair.auc, low=pair.low, high=pair.high)
        figures.append(
            f"{quoted(elided(pair.first))} projects further than {quoted(elided(pair.second))} with probability (AUC) "
            f"{_interval(auc)}, which {_against_chance(auc)}; prompt length alone gives {number(result.length)}"
        )
    if not figures:
        (group,) = best.groups
        figures.append(f"mean projection {number(group.mean)}, standard deviation {number(group.deviation)}")
    rows = plural(sum(group.rows for group in result.groups), "row")
    return (
        f"{card.name} ({card.method}) of {result.model}, not fitted again, on {rows}, at {where}: {'; '.join(figures)}."
    )


def _interval(found: Measured) -> str:
    assert found.low is not None
    assert found.high is not None
    return f"{number(found.mean)} (95 %: {number(found.low)} to {number(found.high)})"


def _against_chance(auc: Measured) -> str:
    assert auc.low is not None
    assert auc.high is not None
    if auc.low > 0.5:
        return "is above chance (0.5)"
    return "is below chance (0.5): the direction is reversed" if auc.high < 0.5 else "does not differ from chance (0.5)"


def _notes(result: TrainProbeResult, applied: AppliedProbe, hidden: int) -> list[str]:
    card = applied.card
    read = describe_positions("position", applied.reading.positions)
    pooled = {"none": "", "mean": ", averaged", "last": ", the last of them"}[applied.reading.pool]
    notes = on_means(result.first_left_out) + in_force(result.interventions)
    if card.reading is not None and card.reading != applied.reading:
        fitted = describe_positions("position", card.reading.positions)
        notes.append(f"The states are those at {read}{pooled}, and {card.name} was fitted at {fitted}.")
    else:
        notes.append(f"Read as when it was made: {result.site}, {read}{pooled}.")
    if card.thresholds:
        notes.append(
            f"A row is assigned to {quoted(elided(card.classes[0]))} where its projection on the unit direction "
            f"exceeds the threshold of the fit, otherwise to {quoted(elided(card.classes[1]))}."
        )
        if result.applied_layers[0].accuracy is None:
            classes = " and ".join(quoted(elided(name)) for name in card.classes)
            notes.append(f"No accuracy: name the groups {classes}, as when the probe was fitted.")
    if applied.fitted_texts:
        notes.append(
            f"{plural(applied.fitted_texts, 'distinct prompt')} of these were among those that it was made from: "
            "the figures are too high for unseen prompts."
        )
    notes.append(
        "Intervals count each text once. The array scores has every row's projection; the part rows says which "
        "row is what."
    )
    return notes + left_out(hidden, "layer", "applied_layers")


def _columns(best: AppliedLayer) -> list[Column[AppliedLayer]]:
    columns: list[Column[AppliedLayer]] = [Column("layer", lambda layer: layer.layer)]
    if best.accuracy is not None:
        columns += [
            Column("accuracy", lambda layer: layer.accuracy and layer.accuracy.mean),
            Column("95 %", lambda layer: layer.accuracy and [layer.accuracy.low, "to", layer.accuracy.high]),
        ]
    if best.pairs:
        columns += [
            Column("AUC", lambda layer: layer.pairs[0].auc),
            Column("AUC 95 %", lambda layer: [layer.pairs[0].low, "to", layer.pairs[0].high]),
        ]
    if best.threshold is not None:
        columns.append(Column("threshold", lambda layer: layer.threshold))
    return columns + [
        Column(f"mean {elided(group.group)}", _mean_of(at)) for at, group in enumerate(best.groups[:_GROUPS])
    ]


def _mean_of(at: int) -> Callable[[AppliedLayer], float]:
    return lambda layer: layer.groups[at].mean


def _every_layer(layers: list[AppliedLayer]) -> dict[str, list[float]]:
    numbers: dict[str, list[float]] = {}
    if all(layer.accuracy is not None for layer in layers):
        numbers["accuracy"] = [layer.accuracy.mean for layer in layers if layer.accuracy is not None]
    if all(layer.pairs for layer in layers):
        numbers["AUC"] = [layer.pairs[0].auc for layer in layers]
    return by_layer([layer.layer for layer in layers if layer.layer is not None], numbers) if numbers else {}
