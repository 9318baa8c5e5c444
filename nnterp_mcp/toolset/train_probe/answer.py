"""The answer of `train_probe`: the best layer with its controls, and the reasons to doubt it."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, pstdev

from nnterp_mcp.contract import Measured
from nnterp_mcp.formatting import elided, number, plural, quoted, ranges, spread
from nnterp_mcp.render import PER_LAYER, by_layer, in_force, left_out, on_means
from nnterp_mcp.request.operations import describe_positions
from nnterp_mcp.table import Column, tabulate
from nnterp_mcp.toolset.train_probe.result import (
    AppliedLayer,
    AppliedProbe,
    ProbedLayer,
    SparseProbe,
    TrainProbeAnswer,
    TrainProbeResult,
)

_BUDGET = 420
"""Tokens that the rows of the table and the line of all layers may take, about."""

_ROW = 30
"""Tokens of a row, about."""

_APPLIED_ROW = 40
"""Tokens of a row about a saved probe, about."""

_CHOSEN = 8
"""Chosen features that an answer names."""

_GROUPS = 4
"""Groups whose mean projections the table shows."""

_LONGER = 1.2
"""A ratio of prompt lengths from which groups count as of different length."""


def digest(result: TrainProbeResult) -> TrainProbeAnswer:
    """The best layer, and some others; a saved probe on other prompts."""
    if result.applied is not None:
        return digest_applied(result, result.applied)
    if result.sparse:
        return _digest_sparse(result)
    best = best_layer(result)
    marks = [result.layers.index(best), 0, len(result.layers) - 1]
    room = max(4, (_BUDGET - PER_LAYER * len(result.layers)) // _ROW)
    shown = [result.layers[at] for at in spread(range(len(result.layers)), marks, room)]
    columns: list[Column[ProbedLayer]] = [
        Column("layer", lambda layer: "embeddings" if layer.layer is None else layer.layer),
        Column("accuracy", lambda layer: layer.accuracy),
        Column("95 %", lambda layer: [layer.low, "to", layer.high]),
        Column("shuffled", lambda layer: fmean(layer.shuffled)),
        Column("sd", lambda layer: pstdev(layer.shuffled)),
    ]
    return TrainProbeAnswer(
        finding=_finding(result, best),
        notes=_notes(result, len(result.layers) - len(shown)),
        model=result.model,
        total=len(result.layers),
        truncated=len(shown) < len(result.layers),
        table=tabulate(columns, shown),
        by_layer=_every_layer(result) if len(shown) < len(result.layers) else {},
    )


def _digest_sparse(result: TrainProbeResult) -> TrainProbeAnswer:
    """A row for each number of features, and the last one for the states."""
    columns: list[Column[SparseProbe]] = [
        Column("read", lambda one: "states" if one.count is None else plural(one.count, "feature")),
        Column("accuracy", lambda one: one.accuracy),
        Column("95 %", lambda one: [one.low, "to", one.high]),
        Column("shuffled", lambda one: fmean(one.shuffled)),
        Column("sd", lambda one: pstdev(one.shuffled)),
    ]
    *sparse, dense = result.sparse
    best = max(sparse, key=lambda one: (one.accuracy, -(one.count or 0)))
    names = " against ".join(quoted(elided(group.name)) for group in result.groups)
    best_one = f"{plural(best.count or 0, 'feature')} {'gives' if best.count == 1 else 'give'}"
    single = "" if best.count == 1 else f", one feature {number(sparse[0].accuracy)}"
    chosen = max(sparse, key=lambda one: one.count or 0).features[:_CHOSEN]
    notes = [
        f"Features that differ most between the classes, over all rows: {', '.join(map(str, chosen))}. Each fold "
        "chooses its own, from the rows that it learns from.",
        f"{plural(result.folds, 'fold')} over {plural(result.texts, 'distinct text')}; the largest class alone gives "
        f"{number(result.majority)}, prompt length alone {number(result.length)}. A probe shows what can be read, not "
        "what the model uses.",
    ]
    notes += on_means(result.first_left_out) + in_force(result.interventions)
    return TrainProbeAnswer(
        finding=(
            f"{result.method} probes of features of {quoted(result.dictionary or '')} ({result.site} of "
            f"{result.model}) for {names}: {best_one} a held-out accuracy of "
            f"{number(best.accuracy)} (95 %: {number(best.low)} to {number(best.high)}; shuffled labels at most "
            f"{number(max(best.shuffled))}){single}, the states themselves "
            f"{number(dense.accuracy)}."
        ),
        notes=notes,
        model=result.model,
        total=len(result.sparse),
        truncated=False,
        table=tabulate(columns, result.sparse),
    )


def _every_layer(result: TrainProbeResult) -> dict[str, list[float]]:
    layers = [layer.layer for layer in result.layers if layer.layer is not None]
    return by_layer(layers, {"accuracy": [layer.accuracy for layer in result.layers]})


def best_layer(result: TrainProbeResult) -> ProbedLayer:
    """The layer of the highest accuracy, the middle one of equals."""
    top = max(layer.accuracy for layer in result.layers)
    equals = [layer for layer in result.layers if layer.accuracy == top]
    return equals[len(equals) // 2]


def best_shuffled(result: TrainProbeResult) -> list[float]:
    """The accuracy of the best layer under each shuffle, chosen as the best layer of the true labels was."""
    return [max(accuracies) for accuracies in zip(*(layer.shuffled for layer in result.layers), strict=True)]


def _finding(result: TrainProbeResult, best: ProbedLayer) -> str:
    names = " against ".join(quoted(elided(group.name)) for group in result.groups)
    names = names if len(result.groups) == 2 else f"{len(result.groups)} groups"
    chance = best_shuffled(result)
    several = len(result.layers) > 1
    where = "on the embeddings" if best.layer is None else f"at layer {best.layer}"
    control = "the best layer gives" if several else "it is"
    return (
        f"{result.method} probes ({result.site} of {result.model}) for {names}: the held-out accuracy "
        f"{where}{', the best layer,' if several else ''} is {number(best.accuracy)} (95 %: {number(best.low)} to "
        f"{number(best.high)}); with shuffled labels {control} {number(fmean(chance))}, at most {number(max(chance))} "
        f"over {plural(len(chance), 'shuffle')}; the largest class alone gives {number(result.majority)}, prompt "
        f"length alone {number(result.length)}. {_verdict(result, best)}"
    )


def _verdict(result: TrainProbeResult, best: ProbedLayer) -> str:
    """The controls that lie below the whole interval, and those that do not."""
    controls = {
        "the best shuffle": max(best_shuffled(result)),
        "the largest class": result.majority,
        "prompt length": result.length,
    }
    passed = [name for name, accuracy in controls.items() if best.low > accuracy]
    failed = [name for name in controls if name not in passed]
    if not failed:
        return "The interval is above all three controls."
    but = f"above {' and '.join(passed)}, but " if passed else ""
    return f"The interval is {but}not above {' or '.join(failed)}."


def _notes(result: TrainProbeResult, hidden: int) -> list[str]:
    notes = on_means(result.first_left_out, result.dominant and result.dominant.warning)
    notes += in_force(result.interventions)
    rows = sum(group.rows for group in result.groups)
    prompts = sum(group.prompts for group in result.groups)
    per_prompt = "" if rows == prompts else f", {rows} rows; all rows of a text are in one fold"
    per_prompt += (
        "; the first prompts of all groups are in one fold, the second ones, and so on" if result.paired else ""
    )
    notes.append(
        f"{plural(result.folds, 'fold')} over {plural(result.texts, 'distinct text')}{per_prompt}; intervals count "
        "each text once. A probe shows what can be read, not what the model uses: steer with control=true."
    )
    notes += _warnings(result)
    if result.vector is not None:
        replaced = f" (it replaces one made {result.replaced})" if result.replaced else ""
        notes.append(
            f"Saved as the vector {result.vector.name}{replaced}: one for each layer, pointing towards "
            f"{quoted(elided(result.groups[0].name))}; factor 1 is the distance between the groups' means along it. "
            f"probe={result.vector.name} applies it to other prompts."
        )
    return notes + left_out(hidden, "layer", "layers")


def _warnings(result: TrainProbeResult) -> list[str]:
    """Reasons for which an accuracy means less than it seems to."""
    notes: list[str] = []
    below = [layer.layer for layer in result.layers if layer.high < 1 / len(result.groups)]
    if below:
        layers = [layer for layer in below if layer is not None]
        at = f"at {'layer' if len(layers) == 1 else 'layers'} {ranges(layers)}" if layers else "on the embeddings"
        pairs = "" if result.paired else ": do the groups hold minimal pairs? Give as many of each, in the same order"
        notes.append(f"The whole interval is below chance {at}{pairs}.")
    if result.texts < result.width:
        notes.append(
            f"{result.texts} texts in {result.width} dimensions: any labels can be separated on the texts that a probe "
            "learns from; only held-out figures count."
        )
    counts = [group.prompts for group in result.groups]
    if min(counts) < max(counts):
        notes.append(
            f"The groups differ in size ({min(counts)} to {max(counts)} prompts): judge the accuracy by the largest "
            f"class ({number(result.majority)}). Minimal pairs share a fold only where groups are of equal size."
        )
    tokens = [group.tokens for group in result.groups]
    if max(tokens) > _LONGER * min(tokens):
        notes.append(
            f"The groups differ in length ({number(min(tokens))} to {number(max(tokens))} tokens on average): a probe "
            "may read length or position."
        )
    return notes


def digest_applied(result: TrainProbeResult, applied: AppliedProbe) -> TrainProbeAnswer:
    """The layer that the fit chose, and some others."""
    best, layers = chosen_layer(result, applied), result.directions
    marks = [layers.index(best), 0, len(layers) - 1]
    room = max(3, (_BUDGET - 2 * PER_LAYER * len(layers)) // _APPLIED_ROW)
    shown = [layers[at] for at in spread(range(len(layers)), marks, room)]
    hidden = len(layers) - len(shown)
    return TrainProbeAnswer(
        finding=_applied_finding(result, applied, best),
        notes=_applied_notes(result, applied, hidden),
        model=result.model,
        total=len(layers),
        truncated=hidden > 0,
        table=tabulate(_columns(best), shown),
        by_layer=_every_applied_layer(layers) if hidden else {},
    )


def chosen_layer(result: TrainProbeResult, applied: AppliedProbe) -> AppliedLayer:
    """The layer that told unseen prompts apart best when the probe was made, else that of the most extreme AUC here."""
    card = applied.card
    rates = dict(zip(card.layers, card.held_out, strict=False))

    def merit(layer: AppliedLayer) -> float:
        here = max((abs(pair.auc - 0.5) for pair in layer.pairs[:1]), default=0.0)
        return rates.get(layer.layer, 0.0) if rates and layer.layer is not None else here

    top = max(map(merit, result.directions))
    equals = [layer for layer in result.directions if merit(layer) == top]
    return equals[len(equals) // 2]


def _applied_finding(result: TrainProbeResult, applied: AppliedProbe, best: AppliedLayer) -> str:
    card = applied.card
    choice = "the best on held-out prompts when it was made" if card.held_out else "the AUC farthest from 0.5 here"
    where = f"layer {best.layer}" + (f" ({choice})" if len(result.directions) > 1 else "")
    figures: list[str] = []
    if best.accuracy is not None:
        figures.append(
            f"accuracy {_interval(best.accuracy)}, against {number(result.majority)} for the largest group alone"
        )
    elif best.threshold is not None:
        shares = ", ".join(f"{number(group.assigned or 0.0)} in {quoted(elided(group.group))}" for group in best.groups)
        figures.append(f"the share of rows assigned to {quoted(elided(card.classes[0]))} is {shares}")
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
    return "is below chance (0.5): the direction is reversed" if auc.high < 0.5 else "does not exclude chance (0.5)"


def _applied_notes(result: TrainProbeResult, applied: AppliedProbe, hidden: int) -> list[str]:
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
        if result.directions[0].accuracy is None:
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
    return notes + left_out(hidden, "layer", "directions")


def _columns(best: AppliedLayer) -> list[Column[AppliedLayer]]:
    columns: list[Column[AppliedLayer]] = [Column("layer", lambda layer: layer.layer)]
    if best.accuracy is not None:
        columns.append(Column("accuracy", lambda layer: layer.accuracy and layer.accuracy.mean))
        columns.append(Column("95 %", lambda layer: layer.accuracy and [layer.accuracy.low, "to", layer.accuracy.high]))
    if best.pairs:
        columns.append(Column("AUC", lambda layer: layer.pairs[0].auc))
        columns.append(Column("AUC 95 %", lambda layer: [layer.pairs[0].low, "to", layer.pairs[0].high]))
    if best.threshold is not None:
        columns.append(Column("threshold", lambda layer: layer.threshold))
    return columns + [
        Column(f"mean {elided(group.group)}", _mean_of(at)) for at, group in enumerate(best.groups[:_GROUPS])
    ]


def _mean_of(at: int) -> Callable[[AppliedLayer], float]:
    return lambda layer: layer.groups[at].mean


def _every_applied_layer(layers: list[AppliedLayer]) -> dict[str, list[float]]:
    rated = [layer.accuracy.mean for layer in layers if layer.accuracy is not None]
    areas = [layer.pairs[0].auc for layer in layers if layer.pairs]
    numbers = {name: values for name, values in {"accuracy": rated, "AUC": areas}.items() if values}
    return by_layer([layer.layer for layer in layers if layer.layer is not None], numbers) if numbers else {}
