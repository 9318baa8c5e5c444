"""How an attribution is cut down to an answer: its strongest parts, how well they add up, and the sums by layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from nnterp_mcp.contract import Cell, Table
from nnterp_mcp.formatting import elided, number, plural, quoted
from nnterp_mcp.render import in_force, left_out, lines, shared_tokens, table
from nnterp_mcp.toolset.attribute.result import AttributeAnswer, AttributedPart, AttributeResult, LayerSum

_ROWS = 10
"""Rows of the profile by layer."""

_BUDGET = 520
"""Tokens that the rows of the table may take, about."""

_TOKEN = 20
"""Characters of a token."""

_POOR = 0.5
"""The correlation with real patches below which an answer warns of its estimates."""

_LOOSE = 0.05
"""The share of the whole that integrated gradients may miss before the answer asks for more steps."""


def digest(result: AttributeResult) -> AttributeAnswer:
    """The strongest parts, how they add up, and where they are."""
    order = sorted(result.parts, key=lambda part: -abs(part.value.mean))
    order = [part for part in order if part.value.mean]
    shown = order[: min(result.shown, _room(result))]
    return AttributeAnswer(
        finding=_FINDINGS[result.method](order, result),
        notes=_notes(len(shown), result),
        model=result.model,
        metric=result.whole.mean,
        error=result.error,
        total=result.total,
        truncated=len(shown) < result.total,
        table=_table(shown, result),
        profile=_profile(result),
    )


def _room(result: AttributeResult) -> int:
    """How many rows fit: those of cells with sites and intervals are long."""
    cells = result.method == "patching"
    cost = 12 + 12 * cells + 12 * (cells and result.by == "sublayer") + 14 * (result.whole.low is not None)
    return max(5, _BUDGET // cost)


def part_name(part: AttributedPart, cell: bool = False) -> str:
    """A part as the field writes it: L18H6, L20 MLP, L3 at 4; a token as itself."""
    if part.kind == "token":
        return quoted(elided(part.token or "", _TOKEN))
    if part.layer is None:
        return part.kind
    layer = f"L{part.layer}"
    if cell and part.kind != "heads_output":
        return f"{layer} at {quoted(elided(part.token or '', _TOKEN))} (position {part.index})"
    if part.kind in ("head", "heads_output"):
        return f"{layer}H{part.index}"
    if part.kind == "neuron":
        return f"{layer}N{part.index}"
    return layer if part.kind == "layer" else f"{layer} {part.kind.replace('mlp', 'MLP')}"


def _spoken(part: AttributedPart) -> str:
    """A part in a sentence, where one of several equal tokens needs its position."""
    return f"{part_name(part)} (position {part.index})" if part.kind == "token" else part_name(part)


def attributed(result: AttributeResult) -> str:
    """What is attributed, with its categories."""
    names = [quoted(elided(name)) for name in result.categories]
    if result.metric == "logit_difference":
        return f"logit difference {' − '.join(names)}"
    return f"{'log-probability' if result.metric == 'log_probability' else 'logit'} of {names[0]}"


def _mean(result: AttributeResult) -> str:
    return "" if len(result.prompts) == 1 else f" in the mean of {len(result.prompts)} prompts"


def _whole(result: AttributeResult) -> str:
    return f"{result.model}: the {attributed(result)} is {number(_brief(result.whole.mean))}{_mean(result)}"


def _direct(order: Sequence[AttributedPart], result: AttributeResult) -> str:
    return f"{_whole(result)}, the sum of {plural(result.total, 'part')} (error {_error(result)}).{_extremes(order)}"


def _tokens(order: Sequence[AttributedPart], result: AttributeResult) -> str:
    return f"{_whole(result)}.{_extremes(order)}"


def _integrated(order: Sequence[AttributedPart], result: AttributeResult) -> str:
    assert result.base is not None
    base, error = number(_brief(result.base.mean)), result.error or 0.0
    adds = f"the tokens add up to the difference (error {_error(result)})"
    sums = adds if error < _LOOSE else f"the tokens' sum misses the difference by {number(_brief(error))}"
    points = "" if result.points is None else f" ({result.points} gradients)"
    return f"{_whole(result)}, and {base} with every token's embedding the mean one; {sums}{points}.{_extremes(order)}"


def _patching(order: Sequence[AttributedPart], result: AttributeResult) -> str:
    assert result.base is not None
    opening = f"{_whole(result)}, with {result.corruption} {number(_brief(result.base.mean))}."
    if not order or result.checked is None:
        return f"{opening} No cell changes anything: the two runs have the same states there."
    found = result.checked
    alike = (
        "" if found.pearson is None else f"correlate {found.pearson:.2f} with real patches over {found.cells} cells, "
    )
    signs = f"{round(found.agreement * found.strongest)} of the {found.strongest} strongest have the estimated sign"
    first = order[0]
    put = f"Clean {first.kind} of {part_name(first, cell=True)} would move it by {number(_brief(first.value.mean))}"
    done = "" if first.patched is None else f" to first order, and do by {number(_brief(first.patched))}"
    return f"{opening} {put}{done}. The estimates {alike}{'and ' if alike else ''}{signs}."


_FINDINGS = {"direct": _direct, "gradient": _tokens, "integrated": _integrated, "patching": _patching}


def _error(result: AttributeResult) -> str:
    return f"{result.error or 0:.0e}"


def _extremes(order: Sequence[AttributedPart]) -> str:
    """The part that adds most, and the one that takes most away."""
    most = max(order, key=lambda part: part.value.mean, default=None)
    least = min(order, key=lambda part: part.value.mean, default=None)
    said = ""
    if most is not None and most.value.mean > 0:
        said += f" {_spoken(most)} adds most, {number(_brief(most.value.mean))}."
    if least is not None and least.value.mean < 0:
        said += f" {_spoken(least)} takes most away, {number(_brief(least.value.mean))}."
    return said


def _table(parts: Sequence[AttributedPart], result: AttributeResult) -> Table:
    if result.method == "patching":
        return _cell_table(parts, result)
    interval = result.whole.low is not None and result.method == "direct"
    tokens = result.by == "token"
    several = tokens and len(result.prompts) > 1
    columns = [
        *(["prompt"] if several else []),
        *(["position", "token"] if tokens else ["part"]),
        result.metric,
        *(["95 %"] if interval else []),
    ]
    rows: list[list[Cell]] = []
    for part in parts:
        token = elided(part.token or "", _TOKEN)
        where: list[Cell] = [part.index, token] if tokens else [part_name(part)]
        rows.append(
            [
                *([part.prompt] if several else []),
                *where,
                _brief(part.value.mean),
                *([_interval(part)] if interval else []),
            ]
        )
    return Table(columns=columns, rows=rows)


def _cell_table(parts: Sequence[AttributedPart], result: AttributeResult) -> Table:
    interval = any(part.value.low is not None for part in parts)
    heads = result.by == "head"
    several = result.by == "sublayer"
    columns = [
        *(["site"] if several else []),
        *(["head"] if heads else ["layer", "position", "token"]),
        "estimate",
        *(["95 %"] if interval else []),
        "patched",
    ]
    rows: list[list[Cell]] = []
    for part in parts:
        place: list[Cell] = [part.layer, part.index, elided(part.token or "", _TOKEN)]
        rows.append(
            [
                *([part.kind] if several else []),
                *([part_name(part)] if heads else place),
                _brief(part.value.mean),
                *([_interval(part)] if interval else []),
                None if part.patched is None else _brief(part.patched),
            ]
        )
    return Table(columns=columns, rows=rows)


def _interval(part: AttributedPart) -> Cell:
    return [_brief(part.value.low or 0.0), "to", _brief(part.value.high or 0.0)]


def _profile(result: AttributeResult) -> Table | None:
    """The sums over every few layers; of estimates the strongest cell; nothing for tokens."""
    if result.method == "patching":
        return _peaks(result)
    if not result.layers:
        return None
    names = [name for name in ("attention", "mlp", "rest") if any(_sum(one, name) is not None for one in result.layers)]
    rows: list[list[Cell]] = []
    for label, group in _groups([one.layer for one in result.layers]):
        chosen = [one for one in result.layers if one.layer in group]
        sums = [[_sum(one, name) for one in chosen] for name in names]
        rows.append([label, *(_added([value for value in column if value is not None]) for column in sums)])
    heads = {"attention": "attention", "mlp": "MLP", "rest": "rest" if len(names) > 1 else "sum"}
    return Table(columns=["layers", *(heads[name] for name in names)], rows=rows)


def _sum(one: LayerSum, name: str) -> float | None:
    return {"attention": one.attention, "mlp": one.mlp, "rest": one.rest}[name]


def _added(values: Sequence[float]) -> Cell:
    return _brief(sum(values)) if values else None


def _peaks(result: AttributeResult) -> Table:
    sites = list(dict.fromkeys(part.kind for part in result.parts))
    rows: list[list[Cell]] = []
    for label, group in _groups(sorted({part.layer for part in result.parts if part.layer is not None})):
        row: list[Cell] = [label]
        for site in sites:
            cells = [part for part in result.parts if part.kind == site and part.layer in group]
            peak = max(cells, key=lambda part: abs(part.value.mean), default=None)
            mark = "H" if result.by == "head" else "@"
            row.append(None if peak is None else [_brief(peak.value.mean), f"{mark}{peak.index}"])
        rows.append(row)
    return Table(columns=["layers", *sites], rows=rows)


def _groups(layers: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Layers in at most `_ROWS` groups of neighbours, with their labels."""
    count = min(_ROWS, len(layers))
    keyed = groupby(enumerate(layers), key=lambda item: item[0] * count // len(layers))
    groups = [[layer for _, layer in group] for _, group in keyed]
    return [(str(group[0]) if len(group) == 1 else f"{group[0]}–{group[-1]}", group) for group in groups]


def _notes(shown: int, result: AttributeResult) -> list[str]:
    notes = [_READING[result.method]]
    kinds = {part.kind for part in result.parts}
    if result.rescaled:
        notes.append("What comes after the head (a softcap or scale) is held at its factor too.")
    if result.metric == "logit":
        notes.append("A logit alone also counts what raises every token; a second category takes that off.")
    if "rest" in kinds:
        notes.append("rest: what a layer adds beside attention and MLP, interventions included.")
    if "token choice" in kinds:
        notes.append("token choice: a category's tokens count together; their log-sum-exp less their weighted mean.")
    if result.method == "integrated" and result.base is not None:
        way = abs(result.whole.mean - result.base.mean)
        missed = max(result.error or 0.0, result.missed or 0.0)
        if missed > _LOOSE * max(way, 0.1):
            notes.append(
                f"Piece by piece the way from the baseline is missed by {number(_brief(missed))} in all, and tokens' "
                "shares by about as much: more steps go where it bends."
            )
    if result.checked is not None and (result.checked.pearson or 1.0) < _POOR:
        notes.append("Do not rely on the estimates here: trust the patched column, or patch_activations.")
    if result.whole.low is not None and result.by != "token":
        notes.append(f"Means over {plural(len(result.prompts), 'prompt')}; 95 % intervals by resampling them.")
    notes += in_force(result.in_force)
    notes += shared_tokens(result.shared)
    if result.total > shown:
        notes.append(left_out(plural(result.total - shown, "part"), "parts"))
    return notes


_READING = {
    "direct": "Direct paths only, the norms' scales held: what acts through later layers counts where they write.",
    "gradient": "First order: a slope says little where the model saturates; integrated gradients go the whole way.",
    "integrated": "Against the mean embedding: another baseline gives other numbers.",
    "patching": "estimate: (clean − corrupted) · slope in the corrupted run; patched: done. profile: strongest cell.",
}


def _brief(value: float) -> float:
    """Two digits after the point, or two that mean something."""
    return round(value, 2) if abs(value) >= 0.1 else float(f"{value:.2g}")


def render(answer: AttributeAnswer) -> str:
    """As text: the strongest parts, then the profile; tokens in quotes so that their spaces show."""
    profile = [] if answer.profile is None else ["profile:", table(answer.profile)]
    content = answer.table
    rows = [
        [quoted(str(value)) if column == "token" else value for column, value in zip(content.columns, row, strict=True)]
        for row in content.rows
    ]
    return lines(answer, table(Table(columns=content.columns, rows=rows)), *profile)
