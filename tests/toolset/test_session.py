"""`session` describes the loaded models."""

from __future__ import annotations

from nnterp_mcp.toolset.session.answer import digest
from nnterp_mcp.toolset.session.result import LoadedModel, SessionResult


def test_what_is_not_replayed_as_graphs_is_said_with_the_reason() -> None:
    model = LoadedModel(
        handle="bloom",
        source="bigscience/bloom-560m",
        state="ready",
        device="cuda:0",
        dtype="bfloat16",
        age=60.0,
        host_memory=10**9,
        device_memory=2 * 10**9,
        uncaptured={"decode steps": "operation not permitted when stream is capturing"},
    )
    answer = digest(SessionResult(models=[model], runs=[], vectors=[], gone={}, free_memory=10**10))

    reason = "The decode steps of bloom are not replayed as graphs: operation not permitted when stream is capturing"
    assert reason in answer.notes
    assert reason in answer.text()
