"""What was measured, as lines, as JSON, and as the tables of docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .jobs import OURS, Target
from .measuring import Grown, Measured
from .players import TOOLS, Setting
from .spread import Spread

PAGE = TOOLS.parent / "docs" / "performance.md"

TITLES = {
    "raw": "raw",
    "ours": "ours",
    "mcp": "over MCP",
    "traces": "a trace each",
    "nnterp": "nnterp",
    "transformer_lens": "TransformerLens",
}
"""The contestants in the order of the tables, as these call them."""


def say(measured: Measured) -> str:
    """A job in a few lines."""
    job = measured.job
    lines = [f"{job.name}: {job.measures}"]
    for name in TITLES:
        if name in measured.seconds:
            lines.append("  " + _say_one(measured, name))
        elif name in measured.failures:
            lines.append(f"  {name}: failed: {measured.failures[name]}")
    lines += [f"  target: {judge(measured, target)}" for target in job.targets]
    lines += [f"  FAULT: {fault}" for fault in measured.faults]
    return "\n".join(lines)


def _say_one(measured: Measured, name: str) -> str:
    parts = [f"{name}: {duration(Spread.of(measured.seconds[name]))}"]
    compared = None if name == "raw" else measured.compare(name, "raw")
    if compared is not None:
        parts.append(f"{compared.median:.2f} ± {compared.deviation:.2f} × raw")
    if name in measured.peaks:
        parts.append(f"peak {size(measured.peaks[name])} above the model")
    if name in measured.differences:
        note = "" if name in OURS or measured.differences[name] <= measured.job.tolerance else " (not the same numbers)"
        parts.append(f"differs by at most {measured.differences[name]:.1g}{note}")
    return ", ".join(parts)


def judge(measured: Measured, target: Target) -> str:
    """A target, what came of it, and whether that is enough."""
    value = measured.value_of(target)
    if value is None:
        return f"{target}: not measured"
    came = f"{value * 1e3:.1f} ms" if target.than is None else f"{value:.3g} ×"
    if target.at_most < 1 and target.measure == "seconds" and target.than is not None:
        came = f"{1 / value:.3g} × faster"
    return f"{target}: {came}, {'met' if value <= target.at_most else 'MISSED'}"


def say_growth(grown: Grown) -> str:
    """A growth in a few lines."""
    growth = grown.growth
    lines = [f"{growth.name}: {growth.play}, {growth.axis} {', '.join(map(str, growth.values))}"]
    for name, seconds in grown.seconds.items():
        lines.append(f"  {name}: {_row(map(milliseconds, seconds))}, exponent {grown.exponent(name, seconds):.2f}")
    for name, peaks in grown.peaks.items():
        lines.append(f"  {name}: peak {_row(map(size, peaks))}, exponent {grown.exponent(name, peaks):.2f}")
    return "\n".join(lines)


def _row(cells: Any) -> str:
    return ", ".join(cells)


def duration(spread: Spread) -> str:
    """A median with its deviation, in the unit that suits it."""
    if spread.median >= 1:
        return f"{spread.median:.2f} ± {spread.deviation:.2f} s"
    return f"{spread.median * 1e3:.3g} ± {spread.deviation * 1e3:.2g} ms"


def milliseconds(seconds: float) -> str:
    """A duration without a spread."""
    return f"{seconds * 1e3:.3g} ms"


def size(amount: int) -> str:
    """Bytes, in the unit that people use for memory."""
    return f"{amount / 1e6:.3g} MB"


def as_data(
    setting: Setting, about: Mapping[str, Any], jobs: Sequence[Measured], growths: Sequence[Grown]
) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        **about,
        "model": setting.model,
        "device": setting.device,
        "dtype": setting.dtype,
        "threads": setting.threads,
        "jobs": [_job_data(measured) for measured in jobs],
        "growth": [_growth_data(grown) for grown in growths],
    }


def _job_data(measured: Measured) -> dict[str, Any]:
    spreads = {name: Spread.of(seconds) for name, seconds in measured.seconds.items()}
    targets = [(target, measured.value_of(target)) for target in measured.job.targets]
    return {
        "name": measured.job.name,
        "measures": measured.job.measures,
        "seconds": measured.seconds,
        "median": {name: spread.median for name, spread in spreads.items()},
        "deviation": {name: spread.deviation for name, spread in spreads.items()},
        "peak": measured.peaks,
        "difference": {name: str(gap) if gap == float("inf") else gap for name, gap in measured.differences.items()},
        "failures": measured.failures,
        "targets": [
            {"target": str(target), "value": value, "met": None if value is None else value <= target.at_most}
            for target, value in targets
        ],
    }


def _growth_data(grown: Grown) -> dict[str, Any]:
    return {
        "name": grown.growth.name,
        "axis": grown.growth.axis,
        "values": list(grown.growth.values),
        "seconds": grown.seconds,
        "peak": grown.peaks,
        "exponent": {name: grown.exponent(name, seconds) for name, seconds in grown.seconds.items()},
        "peak_exponent": {name: grown.exponent(name, peaks) for name, peaks in grown.peaks.items()},
    }


def write(content: str, device: str, page: Path = PAGE) -> None:
    """Puts the tables between the page's markers for a kind of device."""
    fill(f"bench {device.partition(':')[0]}", content, page)


def fill(place: str, content: str, page: Path = PAGE) -> None:
    """Puts a text between the page's markers for it.

    Raises:
        LookupError: The page has no such markers.
    """
    begin, end = (f"<!-- {place}: {mark} -->" for mark in ("begin", "end"))
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, marker, after = rest.partition(end)
    if not marker:
        raise LookupError(f"{page.name} has no place for the tables: put {begin} and {end} where they belong.")
    page.write_text(f"{before}{begin}\n{content}\n{end}{after}", encoding="utf-8")


def tables(about: Mapping[str, Any], setting: Setting, jobs: Sequence[Measured], growths: Sequence[Grown]) -> str:
    """Everything, in Markdown."""
    names = [name for name in TITLES if any(name in measured.seconds for measured in jobs)]
    machine = about["machine"]
    parts = [
        f"{setting.model} in {setting.dtype} on {setting.device}, "
        f"{setting.threads} threads, {about['repeats']} repeats; "
        f"{machine.get('device', machine['processor'])}, {machine['cores']} cores, {machine['system']}; "
        f"load {about['load']:.1f} at the start; {about['seconds'] / 60:.0f} min in all.",
        "Versions: " + "; ".join(_versions(TITLES[name], found) for name, found in about["versions"].items()) + ".",
        _table(["job", *(TITLES[name] for name in names), "targets"], [_cells(measured, names) for measured in jobs]),
    ]
    peaks = [measured for measured in jobs if measured.peaks]
    if peaks:
        columns = [name for name in names if any(name in measured.peaks for measured in peaks)]
        rows = [
            [f"`{found.job.name}`", *(size(found.peaks[name]) if name in found.peaks else "" for name in columns)]
            for found in peaks
        ]
        parts.append(_table(["peak memory above the model", *(TITLES[name] for name in columns)], rows))
    if growths:
        rows = [row for grown in growths for row in _growth_rows(grown)]
        parts.append(_table(["growth", "", "along", "time", "exponent", "peak memory", "exponent"], rows))
    return "\n\n".join(parts)


def _versions(title: str, found: Mapping[str, str]) -> str:
    return f"{title}: " + ", ".join(f"{name} {version}" for name, version in found.items())


def _cells(measured: Measured, names: Sequence[str]) -> list[str]:
    times = [duration(Spread.of(measured.seconds[name])) if name in measured.seconds else "" for name in names]
    judged = "<br>".join(judge(measured, target) for target in measured.job.targets)
    return [f"`{measured.job.name}`", *times, judged]


def _growth_rows(grown: Grown) -> list[list[str]]:
    growth = grown.growth
    return [
        [
            f"`{growth.name}`",
            TITLES[name],
            f"{growth.axis} {_row(map(str, growth.values))}",
            _row(map(milliseconds, seconds)),
            f"{grown.exponent(name, seconds):.2f}",
            _row(map(size, grown.peaks.get(name, []))),
            f"{grown.exponent(name, grown.peaks[name]):.2f}" if name in grown.peaks else "",
        ]
        for name, seconds in grown.seconds.items()
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
