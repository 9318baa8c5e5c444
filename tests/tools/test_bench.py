"""The benchmark: its registry, its statistics, and a small run of it."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.benchmark.jobs import GROWTHS, JOBS, OURS, Job, Target, choose, choose_growths
from tools.benchmark.measuring import Measured, difference
from tools.benchmark.memory import Peak
from tools.benchmark.report import judge, say, write
from tools.benchmark.spread import Spread, exponent, ratio
from tools.benchmark.workloads import Workload, texts

ROOT = Path(__file__).parent.parent.parent
CONTESTANTS = ROOT / "tools" / "benchmark" / "contestants"

TARGETS = {
    ("lens-1", "ours", "raw"): 1.06,
    ("lens-1", "ours", "nnterp"): 1 / 3.5,
    ("lens-1", "mcp", "raw"): 1.15,
    ("lens-32", "mcp", "nnterp"): 1 / 10,
    ("patchscope-1", "ours", "nnterp"): 1 / 20,
    ("patchscope-8", "ours", "nnterp"): 1 / 20,
    ("grid", "ours", "traces"): 1 / 12,
    ("prompts-256", "ours", "nnterp"): 1 / 1.5,
    ("steering", "ours", "raw"): 1.05,
    ("attention", "ours", "raw"): 1.0,
    ("call-stdio", "mcp", None): 0.005,
    ("call-http", "mcp", None): 0.008,
    ("start", "mcp", "raw"): 1.5,
    ("load-warm", "ours", "raw"): 1.5,
    ("load-first", "ours", "raw"): 1.05,
}
"""What the project has set itself, as it was written down before anything was measured."""

positive = st.floats(1e-6, 1e6)


def test_every_target_is_in_the_registry() -> None:
    registered = {(job.name, target.who, target.than): target.at_most for job in JOBS for target in job.targets}

    assert TARGETS.items() <= registered.items()
    assert [(job.name, target.who) for job in JOBS for target in job.targets if target.measure == "peak"] == [
        ("lens-32", "mcp")
    ]


def test_targets_are_set_for_contestants_of_the_job_and_peaks_where_they_are_measured() -> None:
    for job in JOBS:
        for target in job.targets:
            assert {target.who, target.than} - {None} <= set(job.by), job.name
            assert target.measure == "seconds" or job.peak, job.name


@pytest.mark.parametrize("job", [*JOBS, *GROWTHS], ids=lambda job: job.name)
def test_every_contestant_of_a_job_can_do_it(job: Job) -> None:
    for name in job.by:
        assert job.play in _methods(name), f"{name} has no {job.play}"


def _methods(contestant: str) -> set[str]:
    """The plays of a contestant, from its source: a peer cannot be imported here."""
    tree = ast.parse((CONTESTANTS / f"by_{contestant}.py").read_text())
    (made,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Contestant")
    inherited = _methods("ours") if contestant == "traces" else set[str]()
    return inherited | {node.name for node in made.body if isinstance(node, ast.FunctionDef)}


def test_jobs_are_chosen_by_the_beginning_of_their_names() -> None:
    assert [job.name for job in choose(["patchscope", "call-h"], builtin=True, dtype="float32")] == [
        "patchscope-1",
        "patchscope-8",
        "call-http",
    ]
    assert "load-first" not in {job.name for job in choose(None, builtin=False, dtype="float32")}
    assert choose_growths(["lens"]) == []


def test_workloads_are_the_same_in_every_process_and_survive_json() -> None:
    load = Workload(texts(5, 3, 9), positions="all", new_tokens=2)
    elsewhere = subprocess.run(
        [sys.executable, "-c", "from tools.benchmark.workloads import texts; print(texts(5, 3, 9))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )

    assert Workload.parse(json.loads(json.dumps(asdict(load)))) == load
    assert elsewhere.stdout.strip() == str(load.prompts)
    assert {len(text.split()) for text in texts(300, 3, 9)} == set(range(3, 10))


@given(st.lists(positive, min_size=1, max_size=20))
def test_spreads_are_numpys(values: list[float]) -> None:
    found = Spread.of(values)

    assert found.median == pytest.approx(np.median(values))
    assert found.deviation == pytest.approx(np.median(np.abs(np.array(values) - np.median(values))))


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=20))
def test_ratios_are_taken_repeat_by_repeat(pairs: list[tuple[float, float]]) -> None:
    ones, others = zip(*pairs, strict=True)

    assert ratio(ones, others).median == pytest.approx(np.median(np.array(ones) / np.array(others)))


def test_a_machine_that_slows_down_leaves_ratios_alone() -> None:
    assert ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == Spread(2.0, 0.0)


@given(st.lists(st.tuples(st.integers(1, 4096), positive), min_size=2, max_size=8, unique_by=lambda point: point[0]))
def test_exponents_are_numpys(points: list[tuple[int, float]]) -> None:
    sizes, costs = zip(*points, strict=True)
    slope = np.polyfit(np.log(sizes), np.log(costs), 1)[0]

    assert exponent(sizes, costs) == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_numbers_that_do_not_correspond_differ_infinitely() -> None:
    assert difference([1.0, 2.0], [1.0, 2.5]) == 0.5
    assert difference([1.0], [1.0, 2.0]) == math.inf
    assert difference([math.nan], [1.0]) == math.inf


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target("ours", 1.1, "raw"), "ours at most 1.1 × raw: 2 ×, MISSED"),
        (Target("ours", 1 / 4, "nnterp"), "ours at least 4 × faster than nnterp: 5 × faster, met"),
        (
            Target("ours", 0.5, "nnterp", measure="peak"),
            "peak memory of ours at most 0.5 × that of nnterp: 0.25 ×, met",
        ),
        (Target("ours", 0.1), "ours at most 100 ms: 200.0 ms, MISSED"),
        (Target("mcp", 1.0, "raw"), "mcp at most 1 × raw: not measured"),
    ],
)
def test_targets_are_judged_by_what_was_measured(target: Target, words: str) -> None:
    seconds = {"ours": [0.2, 0.2], "raw": [0.1, 0.1], "nnterp": [1.0, 1.0]}
    measured = Measured(JOBS[0], seconds, peaks={"ours": 25, "nnterp": 100})

    assert judge(measured, target) == words


def test_a_job_fails_by_our_numbers_and_not_by_a_peers() -> None:
    wrong = dict.fromkeys([*OURS, "nnterp"], 0.5)
    found = Measured(JOBS[0], differences=wrong | {"mcp": math.nan}, failures={"nnterp": "gone", "ours": "gone too"})

    assert [fault.split()[0] for fault in found.faults] == ["ours:", "ours", "traces", "mcp"]
    assert "nnterp: failed: gone" in say(found)


@pytest.mark.skipif(not Peak.can(), reason="only Linux lets the peak be set back")
def test_peaks_count_what_is_freed_again_and_nothing_from_before() -> None:
    held = b"1" * 200_000_000
    peak = Peak([os.getpid()])
    passing = b"2" * 100_000_000
    del passing

    assert 95_000_000 < peak.above() < 150_000_000
    assert len(held) == 200_000_000


def test_tables_go_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    card = "<!-- bench cuda: begin -->\nold\n<!-- bench cuda: end -->\n"
    page.write_text(f"before\n<!-- bench cpu: begin -->\nold\n<!-- bench cpu: end -->\n{card}after\n")
    write("new", "cpu", page)
    write("newer", "cuda:0", page)

    assert page.read_text() == (
        "before\n<!-- bench cpu: begin -->\nnew\n<!-- bench cpu: end -->\n" + card.replace("old", "newer") + "after\n"
    )
    page.write_text("no place")
    with pytest.raises(LookupError, match="no place for the tables"):
        write("new", "cpu", page)


@pytest.mark.slow
def test_a_quick_run_measures_and_writes(tiny: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    begun = time.monotonic()
    done = _bench("--quick", "--jobs", "lens", "--by", "ours", "raw", "--model", tiny("llama"), "--json", out)
    took = time.monotonic() - begun
    found = json.loads(out.read_text())

    assert done.returncode == 0, done.stdout + done.stderr
    assert [job["name"] for job in found["jobs"]] == [job.name for job in JOBS if job.play == "lens"]
    for job in found["jobs"]:
        assert job["difference"]["ours"] < 1e-4
        assert all(0 < times[0] < took for times in job["seconds"].values())
        assert job["targets"] == [] or job["targets"][0]["met"] == (job["targets"][0]["value"] <= 1.1)
    assert found["versions"]["ours"].keys() >= {"torch", "transformers", "nnsight"}


def _bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), "--threads", "1", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_peer_that_is_named_and_not_there_is_told_how_to_make(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tools.benchmark import command, environments

    monkeypatch.setattr(environments, "_BUILD", tmp_path)
    with pytest.raises(SystemExit, match=r"no environment of nnterp below build/ yet: --peers makes it"):
        command.main(["--by", "raw", "nnterp", "--jobs", "lens-1"])


@pytest.mark.slow
def test_the_accelerator_s_command_runs_on_a_small_model() -> None:
    ran = subprocess.run(
        [sys.executable, "tools/gpu.py", "--device", "cpu", "--small"], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "tests: exit code 0" in ran.stdout
    assert re.search(r"steering: .*\n  raw: .*\n  ours: .* × raw, differs by at most", ran.stdout)
