from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nnterp_mcp.pool.messages import (
    Call,
    Cancel,
    Failure,
    Ping,
    Pong,
    Progress,
    Recorded,
    Reply,
    Start,
    from_worker,
    to_line,
    to_worker,
)
from nnterp_mcp.runs.records import RunError
from nnterp_mcp.settings import Settings

words = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(words, values, max_size=4)
ids = st.integers(min_value=0)
numbers = st.floats(allow_nan=False, allow_infinity=False)
errors = st.builds(RunError, code=words, message=words, next_step=words)
settings = st.builds(Settings, max_models=st.integers(1, 99), load_timeout=st.floats(0.1, 1e6), cache=st.just("/tmp"))


@given(
    st.builds(
        Call, id=ids, tool=words, params=objects, recorded=st.none() | st.builds(Recorded, run=words, queued=numbers)
    )
    | st.builds(Cancel, id=ids, error=errors)
    | st.just(Ping())
    | st.builds(Start, handle=words, settings=settings)
)
def test_to_the_worker(message: Any) -> None:
    assert to_worker.validate_json(to_line(message)) == message


@given(
    st.builds(Progress, id=ids, done=numbers, total=st.none() | numbers, message=words)
    | st.builds(Reply, id=ids, result=objects, device_memory=st.none() | ids)
    | st.builds(Failure, id=ids, error=errors)
    | st.just(Pong())
)
def test_from_the_worker(message: Any) -> None:
    line = to_line(message)

    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert from_worker.validate_json(line) == message


@pytest.mark.parametrize("line", [b"{}", b'{"kind": "call"}', b'{"kind": "cancel", "id": 1, "more": 2}', b"noise"])
def test_what_is_no_message(line: bytes) -> None:
    with pytest.raises(ValidationError):
        to_worker.validate_json(line)
