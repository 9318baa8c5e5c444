"""From a circuit of many edges to its strongest ones, and faithfulness by size."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.formatting import brief, number, percent, plural
from nnterp_mcp.render import in_force, left_out, shared_tokens
from nnterp_mcp.table import Cell, Column, Kind, tabulate
from nnterp_mcp.toolset.find_circuit.result import (
    ENOUGH,
    CircuitEdge,
    CircuitPart,
    CircuitSize,
    FindCircuitAnswer,
    FindCircuitResult,
)

_EDGES = 6
_PARTS = 16
"""Heads and MLPs that are named."""

_EDGE_COLUMNS: list[Column[CircuitEdge]] = [
    Column("from", lambda edge: edge.sender),
    Column("to", lambda edge: edge.receiver),
    Column("score", lambda edge: edge.score, Kind.BRIEF),
    Column("patched", lambda edge: edge.effect, Kind.BRIEF),
]


def digest(result: FindCircuitResult) -> FindCircuitAnswer:
    """The circuit's faithfulness with its control, the strongest edges, and the curve."""
    hidden = max(0, len(result.edges) - _EDGES)
    curve: list[Column[CircuitSize]] = [
        Column("edges", lambda size: size.edges),
        Column("faithfulness", lambda size: size.faithfulness.mean, Kind.HUNDREDTHS),
        Column("95 %", lambda size: size.faithfulness, Kind.INTERVAL, len(result.measured) > 1),
        Column(
            "random circuits",
            lambda size: _range(size.randoms),
            shown=any(size.randoms for size in result.curve),
        ),
    ]
    return FindCircuitAnswer(
        finding=f"{result.model}: {_finding(result)}",
        notes=_notes(hidden, result),
        model=result.model,
        total=len(result.edges),
        truncated=hidden > 0,
        table=tabulate(_EDGE_COLUMNS, result.edges[:_EDGES]),
        profile=tabulate(curve, _partial(result)) if result.curve else None,
        cells=[_cell(part) for part in result.parts[:_PARTS]],
    )


def _cell(part: CircuitPart) -> str:
    return f"mlps_output L{part.layer}" if part.head is None else f"L{part.layer}H{part.head}"


def _finding(result: FindCircuitResult) -> str:
    unit = result.metric.replace("_", " ")
    runs = (
        f"clean runs have a {unit} of {number(brief(result.clean.mean))}, corrupted ones "
        f"{number(brief(result.corrupted.mean))}"
    )
    chosen = result.chosen
    if chosen is None and result.sizes_left:
        return f"{runs}. Edges are scored on {plural(len(result.scored), 'prompt')}; no circuit was measured."
    if chosen is None:
        return f"{runs}; they do not differ, so that no circuit carries the difference."
    prompts = plural(len(result.measured), "held-out prompt" if _held_out(result) else "prompt")
    said = (
        f"{runs}. With {plural(chosen.edges, 'edge')} of {result.total} ({percent(chosen.share)}) intact and every "
        f"other corrupted, faithfulness is {number(_hundredths(chosen.faithfulness.mean))} on {prompts}"
    )
    return f"{said}. {_compared(chosen)}{_patched(result)}"


def _held_out(result: FindCircuitResult) -> bool:
    return not set(result.scored) & set(result.measured)


def _compared(chosen: CircuitSize) -> str:
    if not chosen.randoms:
        return "No random circuit was measured."
    reaching = sum(value >= chosen.faithfulness.mean for value in chosen.randoms)
    count = len(chosen.randoms)
    share = number(brief((1 + reaching) / (count + 1)))
    return (
        f"{reaching or 'None'} of {count} random circuits of as many edges {'are' if reaching > 1 else 'is'} as "
        f"faithful (at most {number(_hundredths(max(chosen.randoms)))}; (n + 1) / (N + 1) = {share})."
    )


def _patched(result: FindCircuitResult) -> str:
    count = sum(edge.effect is not None for edge in result.edges)
    if not count:
        return ""
    correlation = "" if result.pearson is None else f", correlation {number(brief(result.pearson))}"
    return (
        f" Patched one by one, {percent(result.agreement)} of the {count} strongest edges move the metric the way that "
        f"their score says{correlation}."
    )


def _notes(hidden: int, result: FindCircuitResult) -> list[str]:
    over = "" if len(result.scored) == 1 else f", mean of {len(result.scored)} prompts"
    notes = [
        f"score: estimated change if the edge alone is corrupted (EAP-IG, {plural(result.steps, 'step')}{over}); "
        "patched: the change that it makes."
    ]
    if result.chosen is not None and result.chosen.faithfulness.mean < ENOUGH:
        notes.append("The circuit does not do what the model does: give more edges, or read its curve.")
    if result.sizes_left:
        sizes = plural(result.sizes_left, "larger size")
        notes.append(f"The call ended early: {sizes} of the curve {'is' if result.sizes_left == 1 else 'are'} missing.")
    if not _held_out(result):
        notes.append("Measured on the prompts that chose its edges and its size: 4 or more give held-out ones.")
    if result.under is not None and result.from_one is not None:
        notes.append(
            f"Area under the curve by share of edges (CPR) {number(brief(result.under))}; between it and 1 (CMD) "
            f"{number(brief(result.from_one))}."
        )
    notes += shared_tokens(result.shared) + in_force(result.in_force)
    notes += left_out(max(0, len(result.parts) - _PARTS), "part", "parts")
    return notes + left_out(hidden, "edge", "edges")


def _hundredths(value: float) -> float:
    """A faithfulness to two digits after the point."""
    return round(value, 2) + 0.0


def _range(values: Sequence[float]) -> Cell:
    return [_hundredths(min(values)), "to", _hundredths(max(values))] if values else None


def _partial(result: FindCircuitResult) -> list[CircuitSize]:
    """The sizes below that of the whole graph, whose faithfulness is 1 by construction."""
    return [size for size in result.curve if size.edges < result.total] or result.curve
