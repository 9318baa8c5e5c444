"""What a record says of a run whose server lives, died, or is another one under the same number."""

from __future__ import annotations

import subprocess
import sys
import time

import hypothesis.strategies as st
import psutil
import pytest
from hypothesis import given

from nnterp_mcp import errors
from nnterp_mcp.runs.records import Owner, RunError, RunRecord, check_run_id, is_run_id
from tests.recorded_runs import GONE, PARAMS, TOOLS, describe

OWNER = (
    "from nnterp_mcp.runs.records import Owner; import sys; "
    "print(Owner.this().model_dump_json(), flush=True); sys.stdin.read()"
)
ERRORS = [
    errors.InvalidRequest,
    errors.OutOfMemory,
    errors.LimitExceeded,
    errors.TimedOut,
    errors.Cancelled,
    errors.WorkerLost,
    errors.Internal,
]


@pytest.fixture
def process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def owner_of(process: subprocess.Popen[bytes]) -> Owner:
    assert process.stdout is not None
    return Owner.model_validate_json(process.stdout.readline())


def test_a_run_is_interrupted_once_its_server_has_died(process: subprocess.Popen[bytes]) -> None:
    record = describe("steer-abcdef", owner=owner_of(process))
    assert record.owner.pid == process.pid
    assert record.current() is record

    process.kill()
    process.communicate()
    assert record.current() == record.model_copy(update={"state": "interrupted"})


def test_a_server_that_nobody_has_waited_for_is_dead_all_the_same(process: subprocess.Popen[bytes]) -> None:
    record = describe("steer-abcdef", owner=owner_of(process))
    process.kill()
    end = time.monotonic() + 10
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.01)

    assert record.current().state == "interrupted"
    process.communicate()


def test_another_process_under_the_same_number_is_not_the_owner() -> None:
    this = Owner.this()
    assert this.lives()
    assert not this.model_copy(update={"since": this.since - 100}).lives()
    assert not GONE.lives()


def test_of_a_server_on_another_machine_nothing_is_known() -> None:
    assert GONE.model_copy(update={"host": "elsewhere"}).lives()


@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
def test_a_run_that_has_ended_stays_as_it_is(state: str) -> None:
    record = describe("steer-abcdef", state=state, owner=GONE)
    assert record.current() is record


@given(TOOLS, PARAMS, st.sampled_from(ERRORS), st.text(max_size=30), st.text(max_size=30))
def test_a_record_survives_its_file(
    tool: str, params: dict[str, object], kind: type[errors.NnterpError], message: str, next_step: str
) -> None:
    error = RunError.of(kind(message, next_step))
    record = describe(f"{tool}-abcdef", params=params, state="failed", error=error)
    read = RunRecord.model_validate_json(record.model_dump_json())

    assert read == record
    assert read.error is not None
    again = read.error.error()
    assert (type(again), again.message, again.next_step) == (kind, message, next_step)


def test_an_error_of_a_later_version_is_an_internal_one() -> None:
    assert RunError(code="invented_later", message="m").error().code == "internal"


@given(TOOLS, st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=6, max_size=6))
def test_a_minted_id_has_the_form_of_one(tool: str, letters: str) -> None:
    assert check_run_id(f"{tool}-{letters}") == f"{tool}-{letters}"


@pytest.mark.parametrize(
    "name", ["logit_lens-K3F7QA", "logit_lens-k3f7q1", "logit-lens-k3f7qa", "-k3f7qa", "k3f7qa", "x-k3f7qa\n"]
)
def test_other_names_have_not(name: str) -> None:
    assert not is_run_id(name)
    with pytest.raises(errors.InvalidRequest, match="a run id looks like"):
        check_run_id(name)
