"""From a result of `load_model` to its answer, and the answer as text."""

from __future__ import annotations

from nnterp_mcp.formatting import plural, seconds
from nnterp_mcp.toolset.load_model.result import LoadModelAnswer, LoadModelResult


def digest(result: LoadModelResult) -> LoadModelAnswer:
    """The card in words."""
    failed = [check.name for check in result.checks if not check.passed]
    state = "was loaded already" if result.already_loaded else f"is loaded ({seconds(result.seconds)})"
    passed = f"{len(result.checks) - len(failed)} of {plural(len(result.checks), 'check')} passed"
    if result.checked_before:
        passed += ", at an earlier load of the same files"
    return LoadModelAnswer(
        finding=f"{result.handle} {state}; {passed}.",
        notes=_notes(result, failed),
        model=result.handle,
        card=result.model_dump(exclude={"handle", "checks", "checked_before", "already_loaded", "verified"}),
        checks=[f"{check.name}: {'passed' if check.passed else 'FAILED'}, {check.detail}" for check in result.checks],
    )


def _notes(result: LoadModelResult, failed: list[str]) -> list[str]:
    notes = [f"What needs {name} is refused for this model." for name in failed]
    if not result.verified:
        notes.append(f"{result.architecture} is outside the table of verified architectures: trust the checks above.")
    return notes
