"""The releases that the tests run with, against those that pyproject.toml admits."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("versions")


def test_every_direct_dependency_has_a_lowest_release(versions: Any) -> None:
    found = [Requirement(versions.lowest(one)) for one in versions.direct()]

    assert {"torch", "transformers", "nnsight", "pandas", "pytest"} <= {one.name for one in found}
    for one, pinned in zip(versions.direct(), found, strict=True):
        (version,) = (part.version for part in pinned.specifier)
        assert one.specifier.contains(version), f"{one} does not admit {version}"


def test_the_constraints_hold_every_direct_dependency_in_its_range(versions: Any) -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    held = {canonicalize_name(name): version for name, version in pinned.items()}

    assert next(iter(pinned)) == "torch"
    for one in versions.direct():
        assert one.specifier.contains(held[canonicalize_name(one.name)]), one
