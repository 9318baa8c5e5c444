"""The answer to a lens: one reading by layer, or several by their last layer."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median_low
from typing import Any

from nnterp_mcp.formatting import elided, number, plural, quoted, spread
from nnterp_mcp.render import PER_LAYER, by_layer, in_force, left_out, on_categories
from nnterp_mcp.table import Column, Kind, Table, tabulate
from nnterp_mcp.toolset.logit_lens.result import LayerReading, LensReading, LogitLensAnswer, LogitLensResult, TokenSum

_SAYS = {"logit": "predicts", "inverse": "most strongly demotes"}
_WOULD_SAY = {"logit": "would predict", "inverse": "would most strongly demote"}

_BUDGET = 700
"""Tokens that the rows of an answer may take, about."""

_CATEGORIES = 8
"""Target categories that an answer shows."""

_PARTS = 5
"""Token directions of a sum that a row shows."""

_KL = "KL(last layer || layer)"


def digest(result: LogitLensResult) -> LogitLensAnswer:
    """One reading as a table of layers, several as a table of readings."""
    one = len(result.readings) == 1
    content, hidden = _by_layer(result) if one else _by_reading(result)
    return LogitLensAnswer(
        finding=_finding(result.readings[0], result) if one else _summary(result),
        notes=_notes(result, hidden, "layer" if one else "reading"),
        model=result.model,
        total=len(result.readings),
        truncated=hidden > 0 or len(result.categories) > _CATEGORIES,
        table=content,
        by_layer=_every_layer(result.readings[0], result) if one and hidden else {},
    )


def _every_layer(reading: LensReading, result: LogitLensResult) -> dict[str, list[float]]:
    """The first category's probability at every layer read; without targets, the divergence."""
    if result.categories:
        numbers = {f"{elided(next(iter(result.categories)))} p": [layer.targets[0][0] for layer in reading.layers]}
    else:
        numbers = {_KL: [layer.kl for layer in reading.layers]}
    return by_layer([layer.layer for layer in reading.layers], numbers)


def _notes(result: LogitLensResult, hidden: int, what: str) -> list[str]:
    notes = in_force(result.interventions)
    notes += on_categories(result.categories, result.shared, _CATEGORIES, "readings.layers")
    if result.readings[0].layers[0].decomposition is not None:
        notes.append(
            "A state is decomposed greedily into token directions of weight >= 0; weights are lengths as shares of the "
            "state's norm, explained is the share of its squared norm. Controls: the directions rotated at random "
            "together" + (", the unembedding, other layers' maps." if result.fitted else ".")
        )
    return notes + left_out(hidden, what, "readings.layers")


def _targets(result: LogitLensResult) -> Iterator[Column[Any]]:
    """The columns of the categories, of a reading or of one of its layers."""
    for index, name in enumerate(list(result.categories)[:_CATEGORIES]):
        yield Column(f"{elided(name)} p, rank", lambda read, index=index: _layer(read).targets[index], Kind.RANKED)


def _sums(result: LogitLensResult) -> Iterator[Column[Any]]:
    """The columns of the decomposition of a reading's last layer, or of a layer."""
    first = result.readings[0].layers[0].decomposition
    if first is None:
        return
    yield Column("sum of token directions", lambda read: _sum(read).tokens[:_PARTS], Kind.TOP)
    yield Column("explained", lambda read: _sum(read).explained, Kind.PROBABILITY)
    for name in _controls(result):
        yield Column(f"{name}", lambda read, name=name: _sum(read).controls.get(name), Kind.PROBABILITY)


def _sum(read: LensReading | LayerReading) -> TokenSum:
    found = _layer(read).decomposition
    assert found is not None
    return found


def _controls(result: LogitLensResult) -> list[str]:
    """The controls of the decompositions; the last layer of a fitted lens has fewer."""
    return list(dict.fromkeys(name for layer in result.readings[0].layers for name in _sum(layer).controls))


def _layer(read: LensReading | LayerReading) -> LayerReading:
    """The last layer of a reading, which tables of several readings show."""
    return read.layers[-1] if isinstance(read, LensReading) else read


def _finding(reading: LensReading, result: LogitLensResult) -> str:
    last = reading.layers[-1]
    where = f"{quoted(elided(reading.token))} (position {reading.position})"
    if last.layer != result.last_layer:
        top, p = last.top[0]
        says = f"{_WOULD_SAY.get(result.lens, 'would predict')} {quoted(elided(top))}"
        return f"After {where}, layer {last.layer} of {result.model} {says} ({number(p)})."
    answer, p = last.top[0]
    says = f"After {where}, {result.model} {_SAYS.get(result.lens, 'predicts')} {quoted(elided(answer))} ({number(p)})"
    return f"{says}{_leads(reading)}{_by_lens(reading, result)}."


def _leads(reading: LensReading) -> str:
    """The layer from which on the answer is the top token, and the top token just before; nothing for one layer."""
    start = reading.leads_from
    if start is None or len(reading.layers) == 1:
        return ""
    if start == reading.layers[0].layer:
        return f", the top token at all {len(reading.layers)} layers read"
    before = next(layer for layer in reversed(reading.layers) if layer.layer < start)
    top = quoted(elided(before.top[0][0]))
    if start == reading.layers[-1].layer:
        return f", the top token at no earlier layer read (layer {before.layer}: {top})"
    return f", the top token at every layer read from {start} on (layer {before.layer}: {top})"


def _by_lens(reading: LensReading, result: LogitLensResult) -> str:
    """The fitted lens by which that is so, and from where on it is so by the logit lens."""
    if result.fitted is None or len(reading.layers) == 1:
        return ""
    return f", by the {result.fitted}; by the logit lens from layer {reading.plain_leads_from} on"


def _by_layer(result: LogitLensResult) -> tuple[Table, int]:
    reading = result.readings[0]
    layers = [layer.layer for layer in reading.layers]
    shown = spread(layers, _landmarks(reading), _rows(10 * len(reading.layers[0].top), result))
    columns: list[Column[LayerReading]] = [
        Column("layer", lambda layer: layer.layer),
        Column("top tokens", lambda layer: layer.top, Kind.TOP),
        Column("entropy", lambda layer: layer.entropy),
        Column(_KL, lambda layer: layer.kl),
        *([Column("logit lens", lambda layer: layer.plain, Kind.TOP)] if result.fitted else []),
        *_targets(result),
        *_sums(result),
    ]
    return tabulate(columns, (layer for layer in reading.layers if layer.layer in shown)), len(layers) - len(shown)


def _rows(top: int, result: LogitLensResult) -> int:
    """Rows that the budget allows, a top token of a row counting 10 tokens, a category as much, the rest 20."""
    top += 12 * _PARTS if result.readings[0].layers[0].decomposition is not None else 0
    room = _BUDGET - (PER_LAYER * len(result.readings[0].layers) if len(result.readings) == 1 else 0)
    return max(4, room // (top + 10 * min(len(result.categories), _CATEGORIES) + 20))


def _landmarks(reading: LensReading) -> list[int]:
    """The layers to show whatever else is left out: the ends, and where the lead begins."""
    layers = [layer.layer for layer in reading.layers]
    marks = [layers[0], layers[-1]]
    if reading.leads_from is not None:
        marks += [
            reading.leads_from,
            max((layer for layer in layers if layer < reading.leads_from), default=layers[0]),
        ]
    return marks


def _by_reading(result: LogitLensResult) -> tuple[Table, int]:
    shown = result.readings[: _rows(10, result)]
    columns: list[Column[LensReading]] = [
        Column("prompt", lambda reading: reading.prompt),
        Column("position", lambda reading: reading.position),
        Column("token", lambda reading: reading.token, Kind.TOKEN),
        Column("answer", lambda reading: _layer(reading).top[0], Kind.TOP),
        Column("leads from", lambda reading: reading.leads_from),
        *([Column("with the logit lens", lambda reading: reading.plain_leads_from)] if result.fitted else []),
        Column("entropy", lambda reading: _layer(reading).entropy),
        *_targets(result),
        *_sums(result),
    ]
    return tabulate(columns, shown), len(result.readings) - len(shown)


def _summary(result: LogitLensResult) -> str:
    starts = sorted(reading.leads_from for reading in result.readings if reading.leads_from is not None)
    prompts = len({reading.prompt for reading in result.readings})
    where = f"{plural(len(result.readings), 'reading')} of {plural(prompts, 'prompt')} in {result.model}"
    layers = result.readings[0].layers
    if not starts or len(layers) == 1:
        return f"{where}."
    found = f"the top token of layer {layers[-1].layer} leads from layer {median_low(starts)} on in the median"
    by = ""
    if result.fitted is not None:
        plain = median_low(sorted(reading.plain_leads_from or 0 for reading in result.readings))
        by = f", by the {result.fitted}; by the logit lens from layer {plain} on"
    return f"{where}: {found} (earliest {starts[0]}, latest {starts[-1]}){by}."
