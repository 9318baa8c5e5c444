"""How a claim is read: numbers as they are shown, and facts as a run stores them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

Facts = dict[str, Any]
NUMBER = r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


def claims(pattern: str, finding: str) -> re.Match[str]:
    """The one match of a pattern, which the finding must have."""
    found = re.search(pattern, finding)
    assert found is not None, f"no claim of the form {pattern!r} in {finding!r}"
    return found


def shows(written: str, value: float) -> None:
    """A number is shown to at least two significant digits, or two after the point."""
    value = float(value)
    assert abs(float(written) - value) <= max(0.0051 * (abs(value) >= 0.09), 0.051 * abs(value), 1e-9), (written, value)


def mean_of(items: list[Facts], name: str) -> np.ndarray[Any, Any]:
    """The means of a measured field."""
    return np.array([item[name]["mean"] for item in items])
