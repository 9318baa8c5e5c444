"""Draws docs/pictures: a figure of each tool on smollm2-135m, and the viewer, where a Chromium is installed.

`python -m tools.pictures [NAME …]` draws all, or those that are named.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

TARGET = Path(__file__).parent.parent / "docs" / "pictures"

_FRANCE, _SPAIN = "The capital of France is", "The capital of Spain is"
_ANSWER = {"answer": "Paris", "wrong": "Madrid"}
_MOODS = {
    "positive": ["I love this film so", "She smiled and was very", "What a wonderful day, I feel"],
    "negative": ["I hate this film so", "She wept and was very", "What a terrible day, I feel"],
}

PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "logit_lens": ("logit_lens", {"prompts": _FRANCE, "targets": {"capital": "Paris", "traps": ["London", "Madrid"]}}),
    "patchscope": ("patchscope", {"source_prompts": "The Eiffel Tower", "max_new_tokens": 4}),
    "attention": ("attention_probs", {"prompts": "When Mary and John went to the store, John gave a drink to"}),
    "attribution": ("attribute", {"prompts": _FRANCE, "targets": _ANSWER, "by": "head"}),
    "activation_patching": (
        "patch_activations",
        {"clean": _FRANCE, "corrupted": {"replace": "France", "with": "Spain"}, "targets": _ANSWER},
    ),
    "circuit": (
        "find_circuit",
        {"clean": _FRANCE, "corrupted": {"replace": "France", "with": "Spain"}, "targets": _ANSWER},
    ),
    "steering": (
        "steer",
        {
            "prompts": "I think this film is",
            "vector": {"positive": " love", "negative": " hate"},
            "layers": [10, 15],
            "factors": [-4, -2, 2, 4],
            "targets": {"good": "great"},
            "control": True,
        },
    ),
    "probes": ("train_probe", {"prompts": _MOODS}),
    "prompt_sets": (
        "run_prompts",
        {
            "prompts": [
                {"prompt": _FRANCE, "targets": {"capital": "Paris"}},
                {"prompt": _SPAIN, "targets": {"capital": "Madrid"}},
                {"prompt": "The capital of Italy is", "targets": {"capital": "Rome"}},
            ],
            "readout": "logit_lens",
        },
    ),
}

_VIEWED = ("patch_activations", PICTURES["activation_patching"][1])
_COLOURS = 200
"""Colours of a picture, which keep it small."""

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main(names: list[str]) -> None:
    """Draws the pictures; the viewer's in a process of its own, since nnsight changes classes that MCP needs."""
    if names == ["viewer"]:
        _draw_viewer()
        return
    _draw_figures([name for name in PICTURES if not names or name in names])
    if not names or "viewer" in names:
        subprocess.run([sys.executable, "-m", "tools.pictures", "viewer"], check=True)


def _draw_figures(names: list[str]) -> None:
    from nnterp_mcp.display.png import draw_png
    from nnterp_mcp.laboratory import Laboratory

    lab = Laboratory("smollm2-135m", dtype="float32")
    for name in names:
        tool, arguments = PICTURES[name]
        _write(name, draw_png(lab.figure(lab.call(tool, **arguments))))


def _write(name: str, picture: bytes) -> None:
    sink = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(_COLOURS, Image.Quantize.MAXCOVERAGE).save(
        sink, "PNG", optimize=True
    )
    (TARGET / f"{name}.png").write_bytes(sink.getvalue())
    print(f"{name}.png: {len(sink.getvalue()):,} bytes")


def _draw_viewer() -> None:
    """A run's page as a browser shows it."""
    from playwright.sync_api import sync_playwright

    from nnterp_mcp.runs.store import RunStore
    from nnterp_mcp.viewer.page import page_with
    from nnterp_mcp.viewer.snapshot import snapshot
    from tests.serving import stdio

    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        print("No Chromium: the viewer's picture stays as it is.")
        return
    tool, arguments = _VIEWED
    with tempfile.TemporaryDirectory() as folder, stdio(data=folder) as caller, sync_playwright() as playwright:
        caller.call("load_model", model="smollm2-135m")
        run_id = caller.call(tool, **arguments).structured_content["run_id"]
        file = Path(folder) / "run.html"
        file.write_text(page_with(snapshot(RunStore(Path(folder) / "runs"), run_id)[0]), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto(file.as_uri())
        page.locator(".all").wait_for()
        _write("viewer", page.screenshot())
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
