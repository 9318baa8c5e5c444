"""Prints a table of faults and what is true after each."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.faults import FAULTS
from tests.faults.scene import Fault, Scenes, expected, inject


def main(words: list[str]) -> int:
    """Injects the faults whose names contain one of the words, or all; returns how many did not end as they should."""
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    wrong = 0
    print("| fault | what the client saw | next call worked | finished runs readable | seconds |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="nnterp-mcp-models-") as root:
        scenes = Scenes(lambda family: _saved(Path(root), family))
        for fault in chosen:
            good, row = _row(fault, scenes)
            wrong += not good
            print(row, flush=True)
        scenes.close()
    print(f"\n{len(chosen)} faults, {wrong} of them not as expected")
    return wrong


def _row(fault: Fault, scenes: Scenes) -> tuple[bool, str]:
    reason = fault.needs()
    if reason is not None:
        return True, f"| {fault.name} | skipped: {reason} | | | |"
    try:
        with scenes.scene(fault) as scene:
            outcome = inject(fault, scene)
            good = expected(fault, outcome)
            mark = "" if good else " ✗"
            saw = outcome.saw.replace("|", "·")
            row = f"| {fault.name}{mark} | {saw} | {_said(outcome.works)} | {_said(outcome.readable)} "
            return good, f"{row}| {outcome.seconds:.1f} |"
    except Exception as error:  # the table goes on; the scene is given up
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return False, f"| {fault.name} ✗ | {said[:300]} | ? | ? | |"


def _said(true: bool) -> str:
    return "yes" if true else "NO"


def _saved(root: Path, family: str) -> Path:
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    folder = root / f"tiny-{family}"
    if not folder.exists():
        tiny_model(family).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
