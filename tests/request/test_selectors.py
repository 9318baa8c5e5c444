from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.request.positions import _is_slice
from nnterp_mcp.request.selectors import resolve_layers

bounds = st.none() | st.integers(-40, 40)
steps = st.none() | st.integers(-5, 5).filter(bool)


def written(part: slice, spaced: bool) -> str:
    """A slice as a caller writes it."""
    parts = [part.start, part.stop] + ([] if part.step is None else [part.step])
    return (" : " if spaced else ":").join("" if bound is None else str(bound) for bound in parts)


@given(st.integers(1, 30), bounds, bounds, steps, st.booleans())
def test_a_range_means_what_it_means_in_python(
    count: int, start: int | None, stop: int | None, step: int | None, spaced: bool
) -> None:
    part = slice(start, stop, step)
    meant = sorted(range(count)[part])
    assume(meant)

    assert _is_slice(written(part, spaced))
    assert resolve_layers(written(part, spaced), count, "m") == meant


@given(st.integers(1, 30), st.lists(st.integers(-40, 40), min_size=1))
def test_integers_count_from_either_end(count: int, asked: list[int]) -> None:
    indices = list(range(count))
    try:
        meant = sorted({indices[layer] for layer in asked})
    except IndexError:
        with pytest.raises(InvalidRequest, match="does not exist"):
            resolve_layers(asked, count, "m")
    else:
        assert resolve_layers(asked, count, "m") == meant


def test_all_and_one() -> None:
    assert resolve_layers("all", 3, "m") == [0, 1, 2]
    assert resolve_layers(-1, 3, "m") == [2]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (40, "layer 40 does not exist: m has layers 0 to 29."),
        ([0, -31], "layer -31 does not exist: m has layers 0 to 29."),
        ("30:", "the range '30:' holds no layer: m has layers 0 to 29."),
    ],
)
def test_what_does_not_exist(asked: str | int | list[int], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_layers(asked, 30, "m")
    assert caught.value.message == message
