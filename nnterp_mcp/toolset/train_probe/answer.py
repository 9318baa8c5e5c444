"""The answer of `train_probe`: the best layer with its controls, and the reasons to doubt it."""

from __future__ import annotations

from statistics import fmean, pstdev

from nnterp_mcp.formatting import elided, number, plural, quoted, ranges, spread
from nnterp_mcp.render import PER_LAYER, by_layer, in_force, left_out, on_means
from nnterp_mcp.table import Column, tabulate
from nnterp_mcp.toolset.train_probe.applied import digest_applied
from nnterp_mcp.toolset.train_probe.result import ProbedLayer, TrainProbeAnswer, TrainProbeResult

_BUDGET = 420
"""Tokens that the rows of the table and the line of all layers may take, about."""

_ROW = 30
"""Tokens of a row, about."""

_LONGER = 1.2
"""A ratio of prompt lengths from which groups count as of different length."""


def digest(result: TrainProbeResult) -> TrainProbeAnswer:
    """The best layer, and some others; a saved probe on other prompts."""
    if result.applied is not None:
        return digest_applied(result, result.applied)
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
        f"{result.method} probes ({result.site} of {result.model}) for {names}: the held-out accuracy {where}"
        f"{', the best layer,' if several else ''} is {number(best.accuracy)} "
        f"(95 %: {number(best.low)} to {number(best.high)}); with shuffled labels {control} "
        f"{number(fmean(chance))}, at most {number(max(chance))} over {plural(len(chance), 'shuffle')}; the largest "
        f"class alone gives {number(result.majority)}, prompt length alone {number(result.length)}. "
        f"{_verdict(result, best)}"
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
