"""Every served tool on NDIF and on this machine: how far the answers differ, bytes sent and received, and time.

    python -m tests.ndif.measure FOLDER [ADDRESS]
    python -m tests.ndif.measure simulated

FOLDER holds the environment that `tests.ndif.deployment install` made. With an address, the NDIF that runs there is
used; else one is started, and both are called over MCP. `simulated` takes nnsight's simulation in this process instead,
whose bytes are counted as they would be sent.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from tests.ndif.deployment import deployed
from tests.ndif.gateway import Gateway, gateway
from tests.serving import Caller, stdio

FRANCE, ITALY = "The capital of France is", "The capital of Italy is"
CAPITALS = {"answer": "Paris", "wrong": "Rome"}
REPEATS = 5
VOCABULARY, LAYERS, HEADS = 49152, 30, 9
LOGITS = VOCABULARY * 4
"""Bytes of one distribution in float32."""

CALLS: dict[str, tuple[str, dict[str, Any], int]] = {
    "logit_lens": ("logit_lens", {"prompts": [FRANCE, ITALY], "targets": CAPITALS}, 2 * LAYERS * LOGITS),
    "run_prompts": (
        "run_prompts",
        {"prompts": [f"The capital of {name} is" for name in ("France", "Italy", "Spain", "Japan", "Peru", "Chad")]
         * 8, "targets": {"capital": ["Paris", "Rome", "Madrid", "Tokyo", "Lima"]}},
        48 * LOGITS,
    ),
    "patchscope": ("patchscope", {"source_prompts": FRANCE, "targets": {"capital": "Paris"}}, LAYERS * LOGITS),
    "steer": (
        "steer",
        {"prompts": FRANCE, "vector": {"positive": " Rome", "negative": " Paris"}, "layers": "5:25", "factors": [-2, 2],
         "targets": CAPITALS, "control": True},
        (1 + 20 * 2 * 6) * LOGITS,
    ),
    "attention_probs": ("attention_probs", {"prompts": FRANCE}, (LAYERS * HEADS * 5 * 5) * 4 + 4 * LOGITS),
    "patch_activations": (
        "patch_activations",
        {"clean": FRANCE, "corrupted": ITALY, "targets": CAPITALS},
        (2 + LAYERS * 5) * LOGITS,
    ),
    "generate": ("generate", {"prompts": [FRANCE, ITALY], "max_new_tokens": 24}, 2 * 24 * LOGITS),
    "attribute": ("attribute", {"prompts": [FRANCE, ITALY], "targets": CAPITALS, "by": "sublayer"}, 2 * LOGITS),
    "collect_activations": ("collect_activations", {"prompts": {"one": [FRANCE], "other": [ITALY]}}, 0),
    "train_probe": (
        "train_probe",
        {"prompts": {"near": [f"{name} is in Europe" for name in ("France", "Italy", "Spain", "Norway")],
                     "far": [f"{name} is in Asia" for name in ("Japan", "India", "China", "Nepal")]}},
        0,
    ),
    "make_vector": (
        "make_vector",
        {"name": "far", "method": "mean_difference", "positive": [FRANCE], "negative": [ITALY], "layers": "5:25"},
        0,
    ),
    "inspect_model": ("inspect_model", {}, 0),
}  # fmt: skip
"""For each row the tool, its arguments, and the bytes of the whole distributions (or patterns) that nnterp would hand
back: of every layer, prompt, run or cell; 0 where there are none."""

HEAD = (
    "| call | largest difference | other differences | bytes sent | bytes back | whole tensors | local, s | NDIF, s | "
    "ratio |\n|---|---|---|---|---|---|---|---|---|"
)


def main(folder: Path, address: str | None) -> None:
    """Prints the table."""
    with deployed(folder) if address is None else nullcontext() as own:
        target = urlsplit(own.address if own is not None else str(address)).port or 80
        with gateway(target) as way, tempfile.TemporaryDirectory() as data:
            _measure(way, Path(data))


def _measure(way: Gateway, data: Path) -> None:
    from nnterp_mcp.model.loading.locate import locate
    from nnterp_mcp.model.loading.locations import BUILTIN
    from nnterp_mcp.settings import Settings

    source = str(locate(BUILTIN, None, Settings().cache, False, lambda message: None).folder)
    folders = f'["{Path(source).parent}"]'
    with stdio(ndif_host=way.address, data=data, runs=data / "runs", folders=folders, reply_within=600) as client:
        here = _handle(client.call("load_model", model=source))
        begun, before = time.monotonic(), way.received
        there = _handle(client.call("load_model", model=source, backend="ndif"))
        print(f"load: {time.monotonic() - begun:.1f} s, {way.received - before:,} bytes back\n")
        print(HEAD)
        for name, (tool, arguments, whole) in CALLS.items():
            _row(client, way, name, tool, arguments, whole, (here, there), data / "runs")


def _handle(answer: Any) -> str:
    assert not answer.is_error, answer.content[0].text
    return answer.structured_content["model"]


def _row(
    client: Caller,
    way: Gateway,
    name: str,
    tool: str,
    arguments: dict[str, Any],
    whole: int,
    handles: tuple[str, str],
    runs: Path,
) -> None:
    results: list[Any] = []
    before = way.sent, way.received
    for handle in handles:
        client.call(tool, model=handle, **arguments)  # the first call of a kind compiles its traces
        before = way.sent, way.received
        answer = client.call(tool, model=handle, **arguments)
        assert not answer.is_error, answer.content[0].text
        run = answer.structured_content.get("run_id")
        results.append(_result(runs, run) if run else answer.structured_content)
    traffic = way.sent - before[0], way.received - before[1]
    seconds = _time([partial(client.call, tool, model=handle, **arguments) for handle in handles])
    _print(name, results, traffic, whole, seconds)


def _time(calls: Sequence[Callable[[], object]]) -> list[float]:
    """The median seconds of each call, all of them in turn."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS):
        for call, times in zip(calls, taken, strict=True):
            begun = time.monotonic()
            call()
            times.append(time.monotonic() - begun)
    return [median(times) for times in taken]


def _print(name: str, results: Sequence[Any], traffic: tuple[int, int], whole: int, seconds: Sequence[float]) -> None:
    numbers, others = _compare(*results)
    local, there = seconds
    sizes = " | ".join(f"{size:,}" for size in (*traffic, whole))
    print(
        f"| {name} | {numbers:.1e} | {others} | {sizes} | {local:.2f} | {there:.2f} | {there / local:.2f} |", flush=True
    )


def simulate() -> None:
    """Prints the table of nnsight's simulation."""
    from transformers import AutoModelForCausalLM

    from nnterp_mcp.engine.executors.ndif.checks import check_served
    from nnterp_mcp.engine.executors.ndif.client import Traffic
    from nnterp_mcp.model.loading.locate import locate
    from nnterp_mcp.model.loading.locations import BUILTIN
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.settings import Settings
    from nnterp_mcp.worker.workbench import Bench
    from tests.engine.executors.ndif.simulated import SimulatedConnection, serve
    from tests.engine.executors.ndif.test_tools import call

    folder = locate(BUILTIN, None, Settings().cache, False, lambda message: None).folder
    served = serve(folder)
    weights = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    local = StandardizedTransformer(weights, tokenizer=served.tokenizer)
    check_served(served)
    connection = served.connection
    assert isinstance(connection, SimulatedConnection)
    print(HEAD)
    with tempfile.TemporaryDirectory() as data:
        benches = [
            Bench("model", Settings(data=Path(data) / name, folders=(folder,)), model)
            for name, model in (("here", local), ("there", served))
        ]
        for name, (tool, arguments, whole) in CALLS.items():
            results: list[Any] = []
            for bench in benches:
                call(bench, tool, arguments)
                connection.traffic, connection.counts = Traffic(), True
                found = call(bench, tool, arguments)
                connection.counts = False
                results.append({field: value for field, value in found.items() if field not in ("model", "seconds")})
            seconds = _time([partial(call, bench, tool, arguments) for bench in benches])
            _print(name, results, (connection.traffic.sent, connection.traffic.received), whole, seconds)


def _result(runs: Path, run: str) -> Any:
    from nnterp_mcp.runs.results import read_result
    from nnterp_mcp.runs.store import RunStore
    from nnterp_mcp.toolset import specs

    store = RunStore(runs)
    return read_result(store, store.read(run), specs()).model_dump(mode="json", exclude={"model", "seconds", "taken"})


def _compare(one: Any, other: Any) -> tuple[float, int]:
    """The largest difference of two numbers, and how many words, tokens and ranks differ."""
    pairs = list(_pairs(one, other))
    numbers = [abs(a - b) for a, b in pairs if isinstance(a, float) and isinstance(b, float)]
    others = [(a, b) for a, b in pairs if not (isinstance(a, float) and isinstance(b, float)) and a != b]
    return max(numbers, default=0.0), len(others)


def _pairs(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _pairs(one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for a, b in zip(one, other, strict=True):
            yield from _pairs(a, b)
    else:
        yield one, other


if __name__ == "__main__":
    if sys.argv[1] == "simulated":
        simulate()
    else:
        main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
