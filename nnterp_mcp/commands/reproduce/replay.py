"""Runs a recorded call again in this process and compares its numbers."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from nnterp_mcp.commands.reproduce.comparison import FieldComparison, compare, compare_arrays
from nnterp_mcp.commands.reproduce.rerun import Rerun, prepare_rerun
from nnterp_mcp.contract import Result
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.laboratory import Laboratory, TellProgress
from nnterp_mcp.runs.dictionaries import DictionaryStore
from nnterp_mcp.runs.records import RunEnvironment, RunRecord
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.runs.vectors import VectorStore
from nnterp_mcp.settings import Settings

_INCIDENTAL = ("seconds", "taken", "made", "replaced", "versions")
"""Fields of results that vary between equal calls."""

_HASH = " sha256"
_HASHING = 120.0
"""Seconds that a replay waits for the hashes of the model's files."""


@dataclass(frozen=True)
class Replay:
    """The comparison of a run with the same call made now.

    Attributes:
        run_id: The run.
        fields: Every field of the results, compared.
        environment: Changes of the environment, such as `torch: 2.8.0 → 2.9.0`.
        replaced: Vectors of the call that were made anew since.
        tolerance: The relative difference allowed between two numbers.
    """

    run_id: str
    fields: list[FieldComparison]
    environment: list[str]
    replaced: list[str]
    tolerance: float

    @property
    def equal(self) -> bool:
        """True if all numbers agree within the tolerance and all texts are equal."""
        return all(field.differing == 0 for field in self.fields)


def replay(run_id: str, settings: Settings, tolerance: float, on_progress: TellProgress | None = None) -> Replay:
    """Loads the model of a run, makes its call again and compares the results.

    Args:
        run_id: The run.
        settings: The folders of runs and vectors, and what may be loaded. Nothing is written there: a vector that the
            call makes goes to a temporary folder.
        tolerance: The relative difference allowed between two numbers (relative to 0.01, if both are smaller).
        on_progress: Called with the progress of the call.

    Raises:
        InvalidRequest: There is no such run, it did not finish, or a vector that it used is gone.
        NnterpError: The model cannot be loaded, or the call fails now.
    """
    store = RunStore(settings.runs)
    rerun = prepare_rerun(_hashed(store, run_id), settings.data)
    before = _read(rerun, store)
    with _apart(rerun, settings) as own:
        lab = Laboratory(
            **rerun.loading,
            others=rerun.record.others,
            settings=own,
            handle=rerun.record.model,
            on_progress=on_progress,
        )
        after = lab.call(rerun.record.tool, **rerun.arguments)
        if lab.bench.files is not None:
            lab.bench.files.wait()
    return Replay(
        run_id=run_id,
        fields=[
            *compare(before.model_dump(), after.model_dump(), tolerance, _INCIDENTAL),
            *_compare_arrays(rerun, store, lab, tolerance),
        ],
        environment=_changes(rerun.record.environment, lab.bench.environment),
        replaced=rerun.replaced,
        tolerance=tolerance,
    )


def _hashed(store: RunStore, run_id: str) -> RunRecord:
    """A run's record; one whose worker still hashes the model's files is waited for."""
    end = time.monotonic() + _HASHING
    while True:
        record = store.read(run_id)
        files = record.environment.files.values() if record.environment is not None else ()
        complete = all(card.sha256 is not None for card in files)
        if complete or not record.owner.lives() or time.monotonic() > end:
            return record
        time.sleep(0.1)


def _read(rerun: Rerun, store: RunStore) -> Result:
    try:
        return rerun.spec.result.model_validate_json(store.read_result(rerun.record))
    except ValidationError:
        raise InvalidRequest(
            f"the result of {rerun.record.id} has not the form that this version's {rerun.spec.name} gives: it was "
            "made by another version.",
            "The record names that version: nnterp-mcp runs show.",
        ) from None


@contextmanager
def _apart(rerun: Rerun, settings: Settings) -> Generator[Settings]:
    """The settings for the call: one that makes vectors writes them to a temporary folder."""
    if rerun.spec.read_only:
        yield settings
        return
    with TemporaryDirectory() as folder:
        own = VectorStore(Path(folder) / "vectors")
        for card in rerun.vectors:
            own.save(card, VectorStore(settings.data / "vectors").load(card.name, card.identity, card.model).directions)
        listed = DictionaryStore(Path(folder) / "dictionaries")
        for card in rerun.dictionaries:
            listed.save(card)
        yield settings.model_copy(update={"data": Path(folder)})


def _compare_arrays(rerun: Rerun, store: RunStore, lab: Laboratory, tolerance: float) -> Iterator[FieldComparison]:
    for name, card in rerun.record.arrays.items():
        if name not in lab.arrays:
            missing = FieldComparison(name)
            missing.add(name, "kept", "not made", tolerance)
            yield missing
            continue
        before = store.read_array(rerun.record.id, name, tuple(slice(None) for _ in card.shape))
        yield compare_arrays(name, before, lab.arrays[name].float().numpy(), tolerance)


def _changes(before: RunEnvironment | None, after: RunEnvironment) -> list[str]:
    """Differences between two environments; a hash that is missing in one of them is ignored."""
    if before is None:
        return ["what computed the run was not recorded"]
    first, second = _facts(before), _facts(after)
    names = list(dict.fromkeys([*first, *second]))
    changed = [name for name in names if first.get(name, "none") != second.get(name, "none")]
    hashed = {name for name in names if name.endswith(_HASH) and None in (first.get(name), second.get(name))}
    return [f"{name}: {first.get(name, 'none')} → {second.get(name, 'none')}" for name in changed if name not in hashed]


def _facts(environment: RunEnvironment) -> dict[str, Any]:
    """An environment as flat names and values: `torch`, `device`, `model.safetensors sha256`."""
    facts = environment.model_dump(exclude={"versions", "files"})
    sizes = {f"{name} bytes": card.bytes for name, card in environment.files.items()}
    hashes = {f"{name}{_HASH}": card.sha256 for name, card in environment.files.items()}
    return environment.versions | facts | sizes | hashes
