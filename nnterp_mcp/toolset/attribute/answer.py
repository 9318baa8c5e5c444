"""How an attribution is cut down to an answer: its strongest parts, how well they add up, and every layer's number."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.formatting import brief, elided, number, plural, quoted
from nnterp_mcp.render import PER_LAYER, by_layer, in_force, left_out, shared_tokens
from nnterp_mcp.table import Column, Kind, Table, tabulate
from nnterp_mcp.toolset.attribute.result import AttributeAnswer, AttributedPart, AttributeResult, LayerSum

_NUMBERS = 80
"""Numbers of all layers that an answer shows; one for each layer where there are more."""

_ESTIMATES = 40
"""The same for estimates, whose rows in the table are longer."""

_BUDGET = 720
"""Tokens that the rows of the table and the lines of all layers may take, about."""

_TOKEN = 20
"""Characters of a token."""

_POOR = 0.5
"""The correlation with real patches below which an answer warns of its estimates."""

_PLURAL = ("embeddings", "positions")
"""Parts whose name is a plural."""

_OF_DICTIONARY = ("feature", "decoder bias", "reconstruction error")
"""Parts that an answer by feature shows; the layers around the dictionary are in the run."""

_LOOSE = 0.05
"""The share of the whole that integrated gradients may miss before the answer asks for more steps."""


def digest(result: AttributeResult) -> AttributeAnswer:
    """The strongest parts, how they add up, and where they are."""
    order = sorted(result.parts, key=lambda part: -abs(part.value.mean))
    order = [part for part in order if part.value.mean and not part.by_construction]
    if result.by == "feature":
        order = [part for part in order if part.kind in _OF_DICTIONARY]
    every = _every_layer(result)
    shown = order[: min(result.shown, _room(result, sum(map(len, every.values()))))]
    return AttributeAnswer(
        finding=_FINDINGS[result.method](order, result),
        notes=_notes(len(shown), result),
        model=result.model,
        metric=result.whole.mean,
        error=result.error,
        total=result.total,
        truncated=len(shown) < result.total,
        table=_table(shown, result),
        by_layer=every,
    )


def _room(result: AttributeResult, numbers: int) -> int:
    """The number of rows that fit next to the numbers of all layers: those of cells with intervals are long."""
    cells = result.method == "patching"
    cost = (
        12
        + 6 * (len(result.categories) if result.method == "direct" else 0)
        + 12 * cells
        + 12 * (cells and result.by == "sublayer")
        + 14 * (result.whole.low is not None)
    )
    return max(5, (_BUDGET - PER_LAYER * numbers) // cost)


def part_name(part: AttributedPart, cell: bool = False) -> str:
    """A part as the field writes it: L18H6, L20 MLP, L3 at 4; a token as itself."""
    if part.kind == "token":
        return quoted(elided(part.token or "", _TOKEN))
    if part.layer is None:
        return part.kind
    layer = f"L{part.layer}"
    if part.source is not None:
        return f"{layer}H{part.index}"
    if cell and part.kind not in ("heads_output", "neurons", "feature"):
        return f"{layer} at {quoted(elided(part.token or '', _TOKEN))} (position {part.index})"
    if part.kind in ("head", "heads_output"):
        return f"{layer}H{part.index}"
    if part.kind in ("neuron", "neurons"):
        return f"{layer}N{part.index}"
    if part.kind == "feature":
        return f"{layer} feature {part.index}"
    return layer if part.kind == "layer" else f"{layer} {part.kind.replace('mlp', 'MLP')}"


def _spoken(part: AttributedPart) -> str:
    """A part in a sentence, where one of several equal tokens needs its position."""
    if part.source is not None:
        return f"{part_name(part)} from {quoted(elided(part.token or '', _TOKEN))} (position {part.source})"
    if part.layer is None and part.kind != "token":
        return f"The {part.kind}"
    return f"{part_name(part)} (position {part.index})" if part.kind == "token" else part_name(part)


def attributed(result: AttributeResult) -> str:
    """The attributed quantity, with its categories."""
    names = [quoted(elided(name)) for name in result.categories]
    if result.metric == "logit_difference":
        return f"logit difference {' − '.join(names)}"
    return f"{'log-probability' if result.metric == 'log_probability' else 'logit'} of {names[0]}"


def _mean(result: AttributeResult) -> str:
    return "" if len(result.prompts) == 1 else f" in the mean of {len(result.prompts)} prompts"


def _whole(result: AttributeResult) -> str:
    return f"{result.model}: the {attributed(result)} is {number(brief(result.whole.mean))}{_mean(result)}"


def _direct(order: Sequence[AttributedPart], result: AttributeResult) -> str:
    if result.by == "source_token":
        pairs = f"The heads' contributions are split into {result.total} pairs of head and source token"
        return f"{_whole(result)}. {pairs} (error {_error(result)}).{_extremes(order)}"
    return f"{_whole(result)}, the sum of {plural(result.total, 'part')} (error {_error(result)}).{_extremes(order)}"


def _tokens(order: Sequence[AttributedPart], result: AttributeResult) -> str:
    return f"{_whole(result)}.{_extremes(order)}"


def _integrated(order: Sequence[AttributedPart], result: AttributeResult) -> str:
    assert result.base is not None
    base, error = number(brief(result.base.mean)), result.error or 0.0
    adds = f"the tokens add up to the difference (error {_error(result)})"
    sums = adds if error < _LOOSE else f"the tokens' sum misses the difference by {number(brief(error))}"
    points = "" if result.points is None else f" ({result.points} gradients)"
    mean = f"{base} with every token's embedding replaced by the mean"
    return f"{_whole(result)}, and {mean}; {sums}{points}.{_extremes(order)}"


def _patching(order: Sequence[AttributedPart], result: AttributeResult) -> str:
    assert result.base is not None
    opening = f"{_whole(result)}, with {result.corruption} {number(brief(result.base.mean))}."
    if result.checked is None:
        return f"{opening} No cell changes anything: the two runs have the same states there."
    if not order:
        return f"{opening} Every effect follows by construction: the patch makes the run the other run."
    found = result.checked
    alike = (
        "" if found.pearson is None else f"correlate {found.pearson:.2f} with real patches over {found.cells} cells, "
    )
    signs = f"{round(found.agreement * found.strongest)} of the {found.strongest} strongest have the estimated sign"
    first = order[0]
    states = "activation" if result.by in ("neuron", "feature") else first.kind
    put = (
        f"The largest estimated effect is that of the clean {states} of {part_name(first, cell=True)}: "
        f"{number(brief(first.value.mean))}"
    )
    done = "" if first.patched is None else f" to first order, and {number(brief(first.patched))} when patched"
    return f"{opening} {put}{done}. The estimates {alike}{'and ' if alike else ''}{signs}."


_FINDINGS = {"direct": _direct, "gradient": _tokens, "integrated": _integrated, "patching": _patching}


def _error(result: AttributeResult) -> str:
    return f"{result.error or 0:.0e}"


def _extremes(order: Sequence[AttributedPart]) -> str:
    """The part that raises the metric most, and the one that lowers it most."""
    most = max(order, key=lambda part: part.value.mean, default=None)
    least = min(order, key=lambda part: part.value.mean, default=None)
    said = ""
    if most is not None and most.value.mean > 0:
        said += f" {_spoken(most)} {_verb(most, 'raise')} it most, by {number(brief(most.value.mean))}."
    if least is not None and least.value.mean < 0:
        said += f" {_spoken(least)} {_verb(least, 'lower')} it most, by {number(brief(-least.value.mean))}."
    return said


def _verb(part: AttributedPart, stem: str) -> str:
    return stem if part.kind in _PLURAL else f"{stem}s"


def _table(parts: Sequence[AttributedPart], result: AttributeResult) -> Table:
    if result.method == "patching":
        return _cell_table(parts, result)
    tokens = result.by == "token"
    sources = result.by == "source_token"
    interval = result.whole.low is not None and result.method == "direct" and not sources
    several = any(part.logits for part in parts)
    names = list(result.categories) if several else []
    columns: list[Column[AttributedPart]] = [
        Column("prompt", lambda part: part.prompt, shown=(tokens or sources) and len(result.prompts) > 1),
        Column("part", part_name, shown=not tokens),
        Column("position", lambda part: part.index if tokens else part.source, shown=tokens or sources),
        Column("token", _token, Kind.TEXT, tokens or sources),
        Column(result.metric, lambda part: part.value.mean, Kind.BRIEF, result.metric != "logit" or not several),
        *(
            Column(f"logit {elided(name)}", lambda part, at=at: part.logits[at], Kind.BRIEF)
            for at, name in enumerate(names)
        ),
        Column("95 %", lambda part: part.value, Kind.INTERVAL, interval),
    ]
    return tabulate(columns, parts)


def _cell_table(parts: Sequence[AttributedPart], result: AttributeResult) -> Table:
    units = result.by in ("head", "neuron", "feature")
    columns: list[Column[AttributedPart]] = [
        Column("site", lambda part: part.kind, shown=result.by == "sublayer"),
        Column(result.by, part_name, shown=units),
        Column("layer", lambda part: part.layer, shown=not units),
        Column("position", lambda part: part.index, shown=not units),
        Column("token", _token, Kind.TEXT, not units),
        Column("estimate", lambda part: part.value.mean, Kind.BRIEF),
        Column("95 %", lambda part: part.value, Kind.INTERVAL, any(part.value.low is not None for part in parts)),
        Column("patched", lambda part: part.patched, Kind.BRIEF),
    ]
    return tabulate(columns, parts)


def _token(part: AttributedPart) -> str:
    return elided(part.token or "", _TOKEN)


def _every_layer(result: AttributeResult) -> dict[str, list[float]]:
    """One number for every layer: what its sublayers add, or of estimates the largest at each site; none for tokens."""
    if result.by == "feature":
        return {}
    found = _largest(result, False) if result.method == "patching" else _adds(result, False)
    if sum(map(len, found.values())) > (_ESTIMATES if result.method == "patching" else _NUMBERS):
        found = _largest(result, True) if result.method == "patching" else _adds(result, True)
    lines = [by_layer(sorted(of), {name: [of[layer] for layer in sorted(of)]}) for name, of in found.items()]
    return {name: values for line in lines for name, values in line.items()}


def _adds(result: AttributeResult, whole: bool) -> dict[str, dict[int, float]]:
    """What each layer adds by its number: by sublayer, or as a whole."""
    found: dict[str, dict[int, float]] = {}
    for one in result.layers:
        added = _added(one)
        for name, value in ({"layer": sum(added.values())} if whole else added).items():
            found.setdefault(f"{name} adds", {})[one.layer] = value
    return found


def _added(one: LayerSum) -> dict[str, float]:
    """What the sublayers of a layer add, or the layer as a whole where it is not split."""
    whole = one.attention is None and one.mlp is None
    added = {"attention": one.attention, "MLP": one.mlp, "layer" if whole else "rest": one.rest}
    return {name: value for name, value in added.items() if value is not None}


def _largest(result: AttributeResult, anywhere: bool) -> dict[str, dict[int, float]]:
    """The estimate of largest size in each layer by its number: at each site, or at any."""
    found: dict[str, dict[int, float]] = {}
    for part in result.parts:
        if part.layer is not None:
            at = found.setdefault(f"largest estimate at {'any site' if anywhere else part.kind}", {})
            at[part.layer] = max(at.get(part.layer, 0.0), part.value.mean, key=abs)
    return found


def _notes(shown: int, result: AttributeResult) -> list[str]:
    notes = [_BY_SLOPE if (result.by, result.method) == ("feature", "gradient") else _READING[result.method]]
    kinds = {part.kind for part in result.parts}
    if result.rescaled:
        notes.append("The softcap or scale after the head is frozen at its factor too.")
    if result.by == "source_token":
        notes.append("A pair: attention of the last token to the source (frozen) × its value, through the output (OV).")
    if result.metric == "logit" and len(result.categories) == 1:
        notes.append("A logit alone also counts what raises every token; a second category subtracts that.")
    if result.by == "feature":
        notes += _on_features(result)
    if "rest" in kinds:
        notes.append("rest: what a layer adds apart from attention and MLP, interventions included.")
    if "token choice" in kinds:
        notes.append("token choice: a category's tokens count together; their log-sum-exp less their weighted mean.")
    if result.method == "integrated" and result.base is not None:
        way = abs(result.whole.mean - result.base.mean)
        missed = max(result.error or 0.0, result.missed or 0.0)
        if missed > _LOOSE * max(way, 0.1):
            notes.append(
                f"Piece by piece, the path from the baseline is missed by {number(brief(missed))} in all, and tokens' "
                "shares are off by about as much: give more steps."
            )
    if result.checked is not None and (result.checked.pearson or 1.0) < _POOR:
        notes.append("Do not rely on the estimates here: trust the patched column, or patch_activations.")
    if result.whole.low is not None and result.by not in ("token", "source_token"):
        notes.append(f"Means over {plural(len(result.prompts), 'prompt')}; 95 % intervals by resampling them.")
    trivial = [part_name(part, cell=True) for part in result.parts if part.by_construction]
    if trivial:
        notes.append(f"Not counted as findings, since they follow by construction: {', '.join(trivial)}.")
    notes += in_force(result.in_force)
    notes += shared_tokens(result.shared)
    return notes + _left_out(shown, result)


def _on_features(result: AttributeResult) -> list[str]:
    """The dictionary, and the share that its features do not explain."""
    error = next((part.value.mean for part in result.parts if part.kind == "reconstruction error"), 0.0)
    if result.method == "patching":
        return [f"Features of {quoted(result.dictionary or '')}, at all positions but the first."]
    others = [part.value.mean for part in result.parts if part.kind not in _OF_DICTIONARY]
    rest = f"; the {plural(len(others), 'other part')}, such as layers, {number(brief(sum(others)))}" if others else ""
    return [
        f"Features of {quoted(result.dictionary or '')}; the reconstruction error, which no feature explains, counts "
        f"{number(brief(error))}{rest}."
    ]


def _left_out(shown: int, result: AttributeResult) -> list[str]:
    """Where the parts are that an answer leaves out: of many neurons the table of the run has only the strongest."""
    if result.total == len(result.parts):
        return left_out(result.total - shown, "part", "parts")
    array = "estimates" if result.method == "patching" else "values"
    return [
        f"{plural(result.total - shown, 'part')} not shown: read_run part=parts has {len(result.parts)}, the strongest "
        f"among them, part={array} all."
    ]


_BY_SLOPE = (
    "Activation × slope, summed over tokens: to first order what the metric loses where the feature is set to zero. "
    "Check the strongest next to random features: patch_activations with cells of site features."
)
_READING = {
    "direct": "Through the residual stream alone to the logits, norms' scales frozen: an effect through a later layer "
    "counts as that layer's. Sorted by size.",
    "gradient": "First order: a slope says little where the model saturates; integrated gradients take the whole path.",
    "integrated": "Against the mean embedding: another baseline gives other numbers.",
    "patching": "estimate: (clean − corrupted) · slope in the corrupted run; patched: done.",
}
