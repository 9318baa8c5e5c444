"""How a lens is cut down to an answer: one reading by layer, or several by what they end in."""

from __future__ import annotations

from nnterp_mcp.contract import Cell, Table
from nnterp_mcp.formatting import elided, number, plural, probability, quoted, spread
from nnterp_mcp.render import cell, in_force, left_out, lines, shared_tokens, table
from nnterp_mcp.toolset.logit_lens.result import LayerReading, Lens, LogitLensAnswer, LogitLensResult, Reading

_SAYS: dict[Lens, str] = {"logit": "says", "inverse": "speaks most against"}
_WOULD_SAY: dict[Lens, str] = {"logit": "would say", "inverse": "would speak most against"}

_BUDGET = 700
"""Tokens that the rows of an answer may take, about."""

_CATEGORIES = 8
"""Target categories that an answer shows."""


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
    )


def _notes(result: LogitLensResult, hidden: int, what: str) -> list[str]:
    notes = in_force(result.interventions)
    notes += shared_tokens(result.shared)
    if len(result.categories) > _CATEGORIES:
        others = len(result.categories) - _CATEGORIES
        notes.append(f"Target categories not shown: {others} of {len(result.categories)}; ask for fewer at once.")
    if hidden:
        notes.append(left_out(plural(hidden, what), "readings.layers"))
    return notes


def _columns(result: LogitLensResult) -> list[str]:
    return [f"{elided(name)} p, rank" for name in list(result.categories)[:_CATEGORIES]]


def _targets(layer: LayerReading) -> list[Cell]:
    return [[probability(p), rank] for p, rank in layer.targets[:_CATEGORIES]]


def _finding(reading: Reading, result: LogitLensResult) -> str:
    last = reading.layers[-1]
    where = f"{quoted(elided(reading.token))} (position {reading.position})"
    if last.layer != result.last_layer:
        top, p = last.top[0]
        says = f"{_WOULD_SAY[result.lens]} {quoted(elided(top))}"
        return f"After {where}, layer {last.layer} of {result.model} {says} ({number(p)})."
    answer, p = last.top[0]
    return (
        f"After {where}, {result.model} {_SAYS[result.lens]} {quoted(elided(answer))} ({number(p)}); {_leads(reading)}."
    )


def _leads(reading: Reading) -> str:
    """From where on the answer is on top, with what was on top just before."""
    start = reading.leads_from
    if start is None or start == reading.layers[0].layer:
        return "it leads at every layer read"
    before = next(layer for layer in reversed(reading.layers) if layer.layer < start)
    return f"it leads from layer {start} on (layer {before.layer}: {quoted(elided(before.top[0][0]))})"


def _by_layer(result: LogitLensResult) -> tuple[Table, int]:
    reading = result.readings[0]
    layers = [layer.layer for layer in reading.layers]
    shown = spread(layers, _landmarks(reading), _rows(10 * len(reading.layers[0].top), result))
    rows: list[list[Cell]] = [
        [
            layer.layer,
            [[elided(token), probability(p)] for token, p in layer.top],
            layer.entropy,
            layer.kl,
            *_targets(layer),
        ]
        for layer in reading.layers
        if layer.layer in shown
    ]
    columns = [
        "layer",
        "top tokens",
        "entropy",
        "KL to last",
        *_columns(result),
    ]
    return Table(columns=columns, rows=rows), len(layers) - len(shown)


def _rows(top: int, result: LogitLensResult) -> int:
    """Rows that the budget allows, a top token of a row counting 10 tokens, a category as much, the rest 20."""
    return max(4, _BUDGET // (top + 10 * min(len(result.categories), _CATEGORIES) + 20))


def _landmarks(reading: Reading) -> list[int]:
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
    columns = ["prompt", "position", "token", "answer", "leads from", "entropy", *_columns(result)]
    rows: list[list[Cell]] = [
        [
            reading.prompt,
            reading.position,
            elided(reading.token),
            [elided(answer), probability(p)],
            reading.leads_from,
            last.entropy,
            *_targets(last),
        ]
        for reading in shown
        for last in reading.layers[-1:]
        for answer, p in last.top[:1]
    ]
    return Table(columns=columns, rows=rows), len(result.readings) - len(shown)


def _summary(result: LogitLensResult) -> str:
    starts = sorted(reading.leads_from for reading in result.readings if reading.leads_from is not None)
    prompts = len({reading.prompt for reading in result.readings})
    where = f"{plural(len(result.readings), 'reading')} of {plural(prompts, 'prompt')} in {result.model}"
    layer = result.readings[0].layers[-1].layer
    found = f"the answer of layer {layer} leads from layer {starts[len(starts) // 2]} on in the median"
    return f"{where}: {found} (layers {starts[0]} to {starts[-1]})." if starts else f"{where}."


def render(answer: LogitLensAnswer) -> str:
    """As text; tokens in quotes so that their spaces show."""
    content = answer.table
    rows = [[_quote(column, value) for column, value in zip(content.columns, row, strict=True)] for row in content.rows]
    return lines(answer, table(Table(columns=content.columns, rows=rows)))


def _quote(column: str, value: Cell) -> Cell:
    if column == "top tokens" and isinstance(value, list):
        return [[quoted(token), p] for token, p in value]
    if column == "answer" and isinstance(value, list):
        return f"{quoted(value[0])} {cell(value[1])}"
    return quoted(str(value)) if column == "token" else value
