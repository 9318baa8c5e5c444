"""Tries every parameter of every tool at its limits and beyond, then random arguments, and prints a table.

`python -m tests.limits [CALLS]` makes at least so many calls in all, 20,000 by default.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from nnterp_mcp.toolset import specs
from tests.limits.bed import Bed, Tally, made, rows
from tests.limits.extremes import extremes, large
from tests.server.test_any_params import arguments, may_unload, valid

_LARGEST = 50_000
"""Values of a request that is nearly as large as one may be."""


def main(calls: int) -> int:
    """Returns how many calls were answered as no arguments may be, and one for a lost model."""
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    with tempfile.TemporaryDirectory(prefix="nnterp-mcp-limits-") as root:
        folder, data = Path(root) / "tiny-llama", Path(root) / "data"
        data.mkdir()
        tiny_model("llama").save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        with made(folder, data) as bed:
            for tool in specs():
                begun = time.monotonic()
                count = try_limits(bed, tool).outcomes.total()
                print(f"{tool}: {count} calls in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
            print("Every parameter at its limits and beyond:\n")
            tried = _told(bed)
            missing = calls - sum(tally.outcomes.total() for tally in tried.values())
            for others, tool in zip(range(len(specs()))[::-1], reversed(specs()), strict=True):  # unload_model is first
                missing -= _try_any(bed, tool, max(1, missing // (others + 1) + 1)).outcomes.total()
            print("\nRandom arguments:\n")
            random = _told(bed)
            kept = bed.holds_its_model()
            print(f"\n{0 if kept else 1} models lost")
    wrong = [fault for tallies in (tried, random) for tally in tallies.values() for fault in tally.wrong]
    print(*wrong, sep="\n")
    return len(wrong) + (not kept)


def try_limits(bed: Bed, tool: str, every: int = 1) -> Tally:
    """Tries every parameter of a tool at its limits and beyond, or every so-manieth value of them."""
    known = valid(tool, bed.run_id, bed.folder)[0]
    properties = specs()[tool].input_schema().get("properties", {})
    tried = [{**known, name: value} for name, schema in properties.items() for value in extremes(schema)]
    tried += [{**known, name: value} for name, value in zip(cycle(properties), large(_LARGEST), strict=False)]
    tried += [known | {f"k{count}": 0 for count in range(most)} for most in (900, 1100)]
    for number, chosen in enumerate(tried):
        if number % every == 0 and not may_unload(tool, chosen, bed.folder):
            bed.outcome(tool, chosen)
    if tool == "edit_model":
        bed.client.call("edit_model", interventions=[])
    return bed.measure(tool)


def _try_any(bed: Bed, tool: str, calls: int) -> Tally:
    """Tries random arguments; fewer than asked for where some would unload the model."""
    known = valid(tool, bed.run_id, bed.folder)

    @settings(
        max_examples=calls, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(arguments(tool, known))
    def try_one(chosen: dict[str, object]) -> None:
        if not may_unload(tool, chosen, bed.folder):
            bed.outcome(tool, chosen)

    try_one()
    bed.client.call("edit_model", interventions=[])
    return bed.measure(tool)


def _told(bed: Bed) -> dict[str, Tally]:
    """Prints the tallies so far, and begins anew."""
    tallies, bed.tallies = bed.tallies, {}
    print(*rows(tallies), sep="\n", flush=True)
    return tallies


if __name__ == "__main__":
    sys.exit(min(100, main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)))
