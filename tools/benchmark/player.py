"""A contestant's process: asked by lines of JSON on standard input what to do, it answers by lines of JSON.

Runs in the contestant's own environment: `python -m benchmark.player CONTESTANT MODEL FOLDER DEVICE DTYPE`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from .contestants import Play, Stage
from .memory import Peak
from .workloads import Workload


def main() -> None:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    contestant, *arguments = sys.argv[1:]
    stage: Stage = importlib.import_module(f".contestants.by_{contestant}", __package__).Contestant(*arguments)
    plays: dict[str, Play] = {}
    try:
        for line in sys.stdin:
            answers.write(json.dumps(_answer(stage, plays, json.loads(line))) + "\n")
    finally:
        stage.close()


def _answer(stage: Stage, plays: dict[str, Play], asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        key = json.dumps([asked["play"], asked["work"]])
        if key not in plays:
            plays[key] = getattr(stage, asked["play"])(Workload.parse(asked["work"]))
        return _DOING[asked["do"]](stage, plays[key])
    except Exception as error:  # a peer that cannot do a job is a result, too
        return {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"}


def _compute(stage: Stage, play: Play) -> dict[str, Any]:
    done = play.work()
    try:
        return {"numbers": play.numbers(done)}
    finally:
        play.after(done)


def _time(stage: Stage, play: Play) -> dict[str, Any]:
    gc.collect()
    stage.synchronize()
    begun = time.perf_counter()
    done = play.work()
    stage.synchronize()
    seconds = (time.perf_counter() - begun) / play.times
    play.after(done)
    return {"seconds": seconds}


def _find_peak(stage: Stage, play: Play) -> dict[str, Any]:
    stage.warm()
    peak = Peak(stage.processes())
    done = play.work()
    above = peak.above()
    play.after(done)
    return {"peak": above}


_DOING = {"numbers": _compute, "seconds": _time, "peak": _find_peak}

if __name__ == "__main__":
    main()
