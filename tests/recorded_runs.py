"""Records that the tests of the run store write."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st

from nnterp_mcp.runs.records import Owner, RunEnvironment, RunRecord
from nnterp_mcp.runs.store import RunStore, now

ENVIRONMENT = RunEnvironment(
    versions={"torch": "2.9.0"},
    platform="Linux x86_64",
    device="cpu",
    device_name="cpu",
    dtype="float32",
    attention="sdpa",
    architecture="LlamaForCausalLM",
    source="tiny",
    revision=None,
    fingerprint="0123abcd",
    files={},
    threads=1,
)
GONE = Owner(host=Owner.this().host, pid=2**22 + 1, since=0.0)
"""A process of this machine that never was: its id is above the kernel's largest."""

TOOLS = st.sampled_from(["logit_lens", "steer", "run_prompts"])
"""Tools whose runs are recorded."""

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    # A lone surrogate cannot come over the protocol, which is UTF-8.
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text('aé\n"\\', max_size=4), parts, max_size=4),
    max_leaves=12,
)
PARAMS = st.dictionaries(st.text("abcé ", min_size=1, max_size=8), JSON, max_size=5)


def describe(run_id: str, **facts: Any) -> RunRecord:
    """A record of a run of this process."""
    given: dict[str, Any] = {
        "id": run_id,
        "tool": run_id.split("-")[0],
        "model": "tiny",
        "request": {"model": "tiny"},
        "params": {"prompts": ["a b"]},
        "opened": now(),
        "owner": Owner.this(),
    }
    return RunRecord.model_validate(given | facts)


def opened(store: RunStore, tool: str = "logit_lens", **facts: Any) -> RunRecord:
    """A run that is under way in this process."""
    return store.open(tool, lambda run_id: describe(run_id, **facts))


def done(store: RunStore, result: bytes = b"{}", tool: str = "logit_lens", **facts: Any) -> RunRecord:
    """A run that has ended well."""
    record = opened(store, tool, **facts)
    ended = {"state": "done", "ended": now(), "result_sha256": store.write_result(record.id, result)}
    record = record.model_copy(update=ended)
    store.write(record)
    return record
