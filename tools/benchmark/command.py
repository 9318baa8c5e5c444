"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import environments
from .jobs import LOOSER, Growth, Job, choose, choose_growths
from .measuring import Grown, Measured, grow, measure
from .memory import Peak
from .players import Setting, playing_all
from .report import as_data, say, say_growth, tables, write

_OWN = ("raw", "ours", "traces", "mcp")
_QUIET = 0.5
"""Load of a machine that does nothing else."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and returns the exit code: 1 if a contestant of ours failed or said other numbers than raw."""
    begun, load = time.monotonic(), environments.load()
    options = _parse(arguments)
    names = _contestants(options.by, options.peers)
    setting = _set(options, names)
    if load > _QUIET:
        print(f"this machine is busy (load {load:.1f}): ratios will be noisy, and times too long")
    jobs, growths = _chosen(options)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        log = Path(folder) / "contestants.log"
        measured = _measure(jobs, names, setting, options, log)
        grown = _grow(growths, setting, options, log)
    used = [name for name in names if any(name in found.seconds for found in measured)]
    about = {
        "machine": environments.machine(options.device),
        "versions": {name: environments.versions(name) for name in used if name in {"ours", *environments.PEERS}},
        "load": load,
        "repeats": options.repeats,
        "quick": options.quick,
        "seconds": time.monotonic() - begun,
    }
    if options.json:
        data = as_data(setting, about, measured, grown)
        Path(options.json).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    if options.write:
        write(tables(about, setting, measured, grown), options.device)
    print(f"done in {about['seconds']:.0f} s")
    return int(any(found.faults for found in measured))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench.py", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a built-in name, a Hub id or a folder")
    parser.add_argument("--device", default="cpu", help="a torch device")
    parser.add_argument("--dtype", default="float32", choices=[*LOOSER], help="what the model computes in")
    parser.add_argument("--threads", type=int, default=2, help="threads of each contestant")
    parser.add_argument("--jobs", nargs="+", metavar="NAME", help="jobs and growths whose names begin so; default all")
    parser.add_argument("--by", nargs="+", metavar="NAME", help="the contestants; default ours and the peers ready")
    parser.add_argument("--repeats", type=int, default=7, help="times each contestant does a job")
    parser.add_argument("--quick", action="store_true", help="small jobs, no memory, no growth unless it is named")
    parser.add_argument("--peers", action="store_true", help="make the peers' environments below build/ first")
    parser.add_argument("--json", metavar="FILE", help="write everything there")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    return parser.parse_args(arguments)


def _contestants(named: Sequence[str] | None, make: bool) -> list[str]:
    """Those that are named, or ours and the peers whose environments are there; peers are made if that is asked for."""
    wanted = named or [*_OWN, *environments.PEERS]
    for name in wanted if make else ():
        environments.make(name)
    ready = [name for name in wanted if environments.is_ready(name)]
    if named and len(ready) < len(named):
        raise SystemExit(f"no environment of {', '.join({*named} - {*ready})} below build/ yet: --peers makes it")
    return ready


def _set(options: argparse.Namespace, names: Sequence[str]) -> Setting:
    return Setting(
        model=str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model,
        folder=str(_find(options.model).resolve()),
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        pythons={name: environments.python_of(name) for name in names},
    )


def _find(model: str) -> Path:
    """The folder of a model's files, downloaded or converted if need be."""
    if Path(model).is_dir():
        return Path(model)
    from nnterp_mcp.model.loading.locate import locate
    from nnterp_mcp.settings import Settings

    return locate(model, None, Settings().cache, False, print).folder


def _chosen(options: argparse.Namespace) -> tuple[list[Job], list[Growth]]:
    jobs = choose(options.jobs, builtin=options.model == "smollm2-135m", dtype=options.dtype)
    growths = choose_growths(options.jobs) if options.jobs or not options.quick else []
    if not options.quick:
        return jobs, growths
    return (
        [replace(job, work=job.work.small(), repeats=1) for job in jobs],
        [replace(growth, values=growth.values[:2]) for growth in growths],
    )


def _measure(
    jobs: Sequence[Job], names: Sequence[str], setting: Setting, options: argparse.Namespace, log: Path
) -> list[Measured]:
    needed = [name for name in names if any(name in job.by for job in jobs)]
    peaks = not options.quick and options.device == "cpu" and Peak.can()
    found: list[Measured] = []
    with playing_all(needed, setting, log) as players:
        for job in jobs:
            if set(job.by) & set(needed):
                found.append(measure(job, players, setting, options.repeats, log, peaks))
                print(say(found[-1]), flush=True)
    return found


def _grow(growths: Sequence[Growth], setting: Setting, options: argparse.Namespace, log: Path) -> list[Grown]:
    found: list[Grown] = []
    for growth in growths:
        found.append(grow(growth, setting, options.repeats, log, options.device == "cpu" and Peak.can()))
        print(say_growth(found[-1]), flush=True)
    return found
