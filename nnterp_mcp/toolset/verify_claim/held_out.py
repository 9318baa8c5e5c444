"""The prompts of a test: those that did not serve to find the claim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.readouts.targets import FollowedTargets, follow_target_sets
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.patching.corruption import Pair, put_in_force
from nnterp_mcp.request.prompt_sets import PromptFile
from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.request.vectors import VectorCard
from nnterp_mcp.runs.records import is_run_id
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.toolset.verify_claim.params import THEORY, ClaimedSubspace, VerifyClaimParams
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
        controls: The control prompts that did not serve to find the claim.
        lost: Runs that a vector was made from and that were deleted: their prompts are not known.
    """

    numbers: list[int]
    pairs: list[Pair]
    targets: list[FollowedTargets]
    corruption: str
    categories: FollowedTargets
    controls: list[Prompt]
    lost: list[str]


def hold_out(bench: Bench, params: VerifyClaimParams) -> HeldOut:
    """Leaves out the pairs of which a prompt served to find the claim.

    Raises:
        InvalidRequest: There is no such run, or prompts and corrupted prompts do not pair up.
    """
    clean, corrupted = params.clean, params.corrupted
    listed: Sequence[Prompt] | None = corrupted if isinstance(corrupted, list | tuple) else None
    if listed is not None and len(listed) != len(clean):
        raise InvalidRequest(f"{len(clean)} clean prompts and {len(listed)} corrupted ones came.", "Give one for each.")
    targets = follow_target_sets(params.targets, len(clean), bench.model)
    origins = _Origins(bench)
    used = set(origins.texts([*params.found_on, *_vectors_of(params)]))
    others: Sequence[Prompt] = clean if listed is None else listed
    left = [at for at in range(len(clean)) if not _served(clean[at], used) and not _served(others[at], used)]
    controls = [prompt for prompt in params.control_prompts if not _served(prompt, used)]
    kept = [clean[at] for at in left]
    other: Any = corrupted if listed is None else [listed[at] for at in left]
    pairs, how = _pairs(bench, kept, other) if left else ([], "")
    if params.interventions and left:
        pairs = put_in_force(pairs, lambda prompts: bench.plan(params.interventions, prompts))
    return HeldOut(left, pairs, [targets[at] for at in left], how, targets[0], controls, origins.lost)


def _pairs(bench: Bench, clean: Sequence[Prompt], corrupted: Any) -> tuple[list[Pair], str]:
    prompts = bench.encode(clean)
    if corrupted is None:
        return [Pair(Input(prompt), None) for prompt in prompts], ""
    return make_pairs(bench, clean, corrupted, prompts)


def _vectors_of(params: VerifyClaimParams) -> list[str]:
    """The named vector that a claim is about: the prompts that made it served to find it."""
    vector = params.claim.vector if isinstance(params.claim, ClaimedSubspace) else None
    return [vector] if isinstance(vector, str) else []


@dataclass(frozen=True)
class _Origins:
    """Finds the texts that served to find a claim.

    Attributes:
        bench: The model, its runs and vectors.
        lost: Runs that a vector was made from and that were deleted.
    """

    bench: Bench
    lost: list[str] = field(default_factory=list[str])

    def texts(self, origins: Iterable[str]) -> Iterator[str]:
        """Prompts, and those of runs and of named vectors; a vector and a prompt of one name count both."""
        cards = {card.name: card for card in self.bench.vectors.cards(self.bench.identity)}
        for origin in origins:
            if is_run_id(origin):
                yield from self._of_run(origin)
            elif origin != THEORY:
                yield origin
                yield from self._behind(cards[origin]) if origin in cards else ()

    def _behind(self, card: VectorCard) -> Iterator[str]:
        """The prompts that made a vector, from its request or from the run whose states it was made from."""
        yield from self._strings(card.request)
        run = card.request.get("run")
        if isinstance(run, str):
            try:
                yield from self._of_run(run)
            except InvalidRequest:
                self.lost.append(run)

    def _of_run(self, run_id: str) -> Iterator[str]:
        return self._strings(RunStore(self.bench.settings.runs).read(run_id).params)

    def _strings(self, value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict) and value.keys() == {"path"}:
            items = self.bench.read_prompts(PromptFile.model_validate(value))
            yield from self._strings([item.model_dump(mode="json") for item in items])
        elif isinstance(value, dict | list | tuple):
            for part in value.values() if isinstance(value, dict) else value:
                yield from self._strings(part)


def _served(prompt: Prompt, used: set[str]) -> bool:
    texts: Sequence[str] = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    return all(text in used for text in texts)
