"""From a result of `load_model` to its answer, and the answer as text."""

from __future__ import annotations

from nnterp_mcp.formatting import plural, seconds
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.toolset.load_model.result import LoadModelAnswer, LoadModelResult

_UNSHOWN = {"handle", "checks", "checked_before", "already_loaded", "verified", "adapter_revision"}
_OF_ADAPTERS = {"adapter", "base", "adapter_of"}


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
        card=result.model_dump(exclude=_UNSHOWN | (set() if result.adapter else _OF_ADAPTERS)),
        checks=[f"{check.name}: {'passed' if check.passed else 'FAILED'}, {check.detail}" for check in result.checks],
    )


def _notes(result: LoadModelResult, failed: list[str]) -> list[str]:
    notes = [f"What needs {name} is refused for this model." for name in failed]
    if result.base is not None:
        notes.append(
            f"It shares the weights of {result.base}, which is the model without the adapter; {result.handle}@0.5 is "
            "the model with half of it."
        )
    if result.adapter_of is not None:
        notes.append(f"The adapter names {shown(result.adapter_of)} as its base; the weights are not compared with it.")
    if not result.verified:
        notes.append(f"{result.architecture} is outside the table of verified architectures: trust the checks above.")
    return notes
