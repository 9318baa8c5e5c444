from __future__ import annotations

import builtins
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnterp_mcp.errors import BY_CODE, Internal, InvalidRequest, NnterpError
from nnterp_mcp.pool.messages import Failure, from_worker, to_line
from nnterp_mcp.runs.records import RunError

CODES = [
    "invalid_request",
    "unknown_model",
    "no_model",
    "stale_handle",
    "unsupported",
    "out_of_memory",
    "limit_exceeded",
    "timed_out",
    "cancelled",
    "worker_lost",
    "forbidden",
    "internal",
]
words = st.text(st.characters(exclude_categories=["Cs"]))


def test_every_code_of_the_taxonomy_has_one_class() -> None:
    assert list(BY_CODE) == CODES
    assert {cls.code for cls in NnterpError.__subclasses__()} == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_each_is_also_an_error_that_python_knows(code: str) -> None:
    bases = BY_CODE[code].__mro__
    known = [base for base in bases if base.__module__ == builtins.__name__ and base is not NnterpError]

    assert issubclass(BY_CODE[code], NnterpError)
    assert Exception in known


@given(code=st.sampled_from(CODES), message=words, next_step=words)
def test_crosses_the_pipe_whole(code: str, message: str, next_step: str) -> None:
    error = BY_CODE[code](message, next_step)
    failure = from_worker.validate_json(to_line(Failure(id=7, error=RunError.of(error))))
    assert isinstance(failure, Failure)
    again = failure.error.error()

    assert type(again) is type(error)
    assert (again.message, again.next_step, str(again)) == (message, next_step, message)


def test_is_pickled_whole() -> None:
    again = pickle.loads(pickle.dumps(InvalidRequest("wrong", "right")))

    assert isinstance(again, InvalidRequest)
    assert (again.message, again.next_step) == ("wrong", "right")


def test_a_code_that_is_not_known_becomes_an_internal_error() -> None:
    assert type(Failure(id=1, error=RunError(code="newer", message="what")).error.error()) is Internal
