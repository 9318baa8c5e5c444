"""Stores that are full, read-only, deleted or damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.scene import LONG, PROMPT, Fault, Scene, attempt
from tests.serving import text, until


def no_mount() -> str | None:
    return None if os.geteuid() == 0 and shutil.which("mount") else "mounting a small file system needs root"


@contextmanager
def _small_store(scene: Scene) -> Generator[Path]:
    """The store on a file system of its own of 256 kB, with the runs that it had."""
    runs = scene.runs
    aside = shutil.copytree(runs, scene.folder / "aside")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(runs)], check=True)
    try:
        yield runs
    finally:
        subprocess.run(["umount", str(runs)], check=True)
        shutil.rmtree(aside)


def _fill(folder: Path, leave: int = 0) -> Path:
    """Takes all of the room of a file system but for some bytes."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as sink, suppress(OSError):
        while True:
            sink.write(b"x" * 4096)
    os.truncate(filler, max(0, filler.stat().st_size - leave))
    return filler


def full_at_open(scene: Scene) -> str:
    with _small_store(scene) as store:
        _fill(store)
        said = attempt(scene.client, "logit_lens", prompts=PROMPT)
        assert not scene.run_ids("logit_lens"), "a run that was refused left a folder"
    return said


def full_at_finish(scene: Scene) -> str:
    """Room for the record, none for the result: the answer comes, and says that it is kept nowhere."""
    with _small_store(scene) as store:
        _fill(store, leave=16_384)
        result = scene.client.call("logit_lens", prompts=["a b c d e f g"] * 40, positions="all", top_k=20)
        assert not result.is_error, text(result)
        (note,) = [note for note in result.structured_content["notes"] if "could not be recorded" in note]
    return f"ok: {note}"


def read_only(scene: Scene) -> str:
    with _small_store(scene) as store:
        subprocess.run(["mount", "-o", "remount,ro", str(store)], check=True)
        return attempt(scene.client, "logit_lens", prompts=PROMPT)


def deleted(scene: Scene) -> str:
    _delete(scene.runs)
    scene.finished.clear()  # they went with the folder
    return attempt(scene.client, "logit_lens", prompts=PROMPT)


def deleted_in_mid_call(scene: Scene) -> str:
    known = scene.run_ids("logit_lens")
    call = scene.client.begin("logit_lens", prompts=LONG[:100], model="tiny-llama")
    # A call whose record cannot begin is refused: it has to have begun.
    until(lambda: any((scene.runs / run / "run.json").exists() for run in scene.run_ids("logit_lens") - known))
    _delete(scene.runs)
    scene.finished.clear()
    result = call.result(60)
    assert not result.is_error, text(result)
    return f"ok: {' '.join(result.structured_content['notes'])}"


def damaged(change: Callable[[Path], None], file: str) -> Callable[[Scene], str]:
    """A run of which a file is changed behind the server's back."""

    def inject(scene: Scene) -> str:
        run_id = scene.client.call("logit_lens", prompts=PROMPT).structured_content["run_id"]
        change(scene.runs / run_id / file)
        return attempt(scene.client, "read_run", run_id=run_id)

    return inject


def damaged_array(scene: Scene) -> str:
    result = scene.client.call(
        "patch_activations", clean="The king of France", corrupted="The king of Spain", targets={"a": " a", "b": " b"}
    )
    assert not result.is_error, text(result)
    run_id = result.structured_content["run_id"]
    (array,) = (scene.runs / run_id).glob("*.safetensors")
    _halve(array)
    return attempt(scene.client, "read_run", run_id=run_id, part=array.stem)


def damaged_vector(cut: int) -> Callable[[Scene], str]:
    """A vector's file that lost its end, or all but its beginning."""

    def inject(scene: Scene) -> str:
        name = f"cut-{cut}"
        made = scene.client.call("make_vector", name=name, method="random", norm=1.0)
        assert not made.is_error, text(made)
        (file,) = (scene.folder / "data" / "vectors").glob(f"*/{name}.safetensors")
        os.truncate(file, file.stat().st_size - cut if cut < 100 else 20)
        add = {"op": "add", "layers": [1], "vector": name, "factor": 1.0}
        return attempt(scene.client, "logit_lens", prompts=PROMPT, interventions=[add])

    return inject


def _delete(folder: Path) -> None:
    """Takes a folder away at once, though others write to it."""
    shutil.rmtree(folder.rename(folder.with_name("deleted")))


def _halve(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _swap(old: str, new: str) -> Callable[[Path], None]:
    """Changes what stands in a file and keeps its form."""

    def change(file: Path) -> None:
        content = file.read_text()
        assert old in content
        file.write_text(content.replace(old, new))

    return change


FAULTS = [
    Fault("half a run.json", damaged(_halve, "run.json"), r"invalid_request: the record of .* is damaged"),
    Fault(
        "a run.json of another tool",
        damaged(_swap('"tool":"logit_lens"', '"tool":"lens_of_old"'), "run.json"),
        r"invalid_request: ",
    ),
    Fault("a run.json that is gone", damaged(Path.unlink, "run.json"), r"invalid_request: there is no run"),
    Fault("half a result.json", damaged(_halve, "result.json"), r"invalid_request: the result of .* is damaged"),
    Fault(
        "a changed result.json",
        damaged(_swap('"layer":1', '"layer":2'), "result.json"),
        r"invalid_request: the result of .* is damaged",
    ),
    Fault(
        "a result.json that is gone",
        damaged(Path.unlink, "result.json"),
        r"invalid_request: the result of .* is damaged",
    ),
    Fault("half an array", damaged_array, r"invalid_request: the array .* is gone or damaged"),
    Fault(
        "a vector that lost its last bytes", damaged_vector(8), r"invalid_request: the file of the vector .* is damaged"
    ),
    Fault(
        "a vector that lost nearly all", damaged_vector(100), r"invalid_request: the file of the vector .* is damaged"
    ),
    Fault(
        "a full disk when a run opens",
        full_at_open,
        r"limit_exceeded: the run cannot be recorded: No space",
        needs=no_mount,
    ),
    Fault("a full disk when a run ends", full_at_finish, r"ok: This answer could not be recorded", needs=no_mount),
    Fault("a read-only store", read_only, r"limit_exceeded: the run cannot be recorded: Read-only", needs=no_mount),
    Fault("the store's folder deleted", deleted, r"ok: "),
    Fault("the store's folder deleted in mid-call", deleted_in_mid_call, r"ok: .*This answer could not be recorded"),
]
