"""The prompts of a test: those that did not serve to find the claim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnterp_mcp.engine.readouts.targets import FollowedTargets, follow_target_sets
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.runs.records import is_run_id
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.toolset.verify_claim.params import THEORY, VerifyClaimParams
from nnterp_mcp.worker.pairs import make_pairs

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


@dataclass(frozen=True)
class HeldOut:
    """The pairs of a test.

    Attributes:
        numbers: The place of each among the clean prompts of the call.
        pairs: The pairs.
        targets: The targets of each.
        corruption: The origin of the corrupted runs, in words.
        categories: The targets of the first clean prompt of the call.
    """

    numbers: list[int]
    pairs: list[Pair]
    targets: list[FollowedTargets]
    corruption: str
    categories: FollowedTargets


def hold_out(bench: Bench, params: VerifyClaimParams) -> HeldOut:
    """Leaves out the pairs of which a prompt served to find the claim.

    Raises:
        InvalidRequest: There is no such run, or prompts and corrupted prompts do not pair up.
    """
    clean, corrupted = params.clean, params.corrupted
    listed = isinstance(corrupted, list | tuple)
    if listed and len(corrupted) != len(clean):
        raise InvalidRequest(
            f"{len(clean)} clean prompts and {len(corrupted)} corrupted ones came.", "Give one for each."
        )
    targets = follow_target_sets(params.targets, len(clean), bench.model)
    used = set(_texts_of(bench, params.found_on))
    left = [
        at for at in range(len(clean)) if not _served(clean[at], used) and not (listed and _served(corrupted[at], used))
    ]
    kept = [clean[at] for at in left]
    other: Any = [corrupted[at] for at in left] if listed else corrupted
    pairs, how = make_pairs(bench, kept, other, bench.encode(kept)) if left else ([], "")
    return HeldOut(left, pairs, [targets[at] for at in left], how, targets[0])


def _texts_of(bench: Bench, origins: Iterable[str]) -> Iterator[str]:
    for origin in origins:
        if is_run_id(origin):
            yield from _strings(RunStore(bench.settings.runs).read(origin).params)
        elif origin != THEORY:
            yield origin


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _served(prompt: Prompt, used: set[str]) -> bool:
    texts: Sequence[str] = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    return all(text in used for text in texts)
