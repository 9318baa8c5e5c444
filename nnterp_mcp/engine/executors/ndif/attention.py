"""Attention on a served model, which has to attend eagerly for it; patterns stay there unless they are small."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch

from nnterp_mcp.engine.executors.ndif.backend import inputs_of, run_served
from nnterp_mcp.engine.executors.ndif.kernels import Data, pick_patterns, read_patterns
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.wire_format import Way, keep_end, places_at
from nnterp_mcp.engine.forward import Plan
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.attention_patterns import (
    Asked,
    AttentionNumbers,
    AttentionReadings,
    HeadChoice,
    OnPattern,
    find_queries,
    hand_over,
    join_prompts,
)
from nnterp_mcp.experiments.induction_heads import UNIT, Copied, HeadKinds, following_tokens, join_scores
from nnterp_mcp.model.text.tokenization import Batch

_AT_ONCE = 1 << 24
"""Attention probabilities that are reduced at one time."""

_WHOLE = 1 << 18
"""Attention probabilities that are brought here whole, over all prompts of a call: a megabyte."""


def read_served_attention(
    model: ServedTransformer,
    work: Workload,
    chosen: Sequence[HeadChoice],
    queries: Sequence[Sequence[int]] | None = None,
    *,
    top_k: int = 3,
    on_pattern: OnPattern | None = None,
    offer: Callable[[Callable[[], AttentionReadings]], None] = lambda so_far: None,
) -> AttentionReadings:
    """`attention_patterns.read_attention` on a served model; larger patterns than a megabyte are not handed over whole,
    and nothing is offered before all is read."""
    model.require("attention")
    asked = find_queries(work.prompts, queries)
    count = sum(len(heads) for _, heads in chosen)
    whole = on_pattern is not None and sum(len(prompt.ids) ** 2 for prompt in work.prompts) * count <= _WHOLE

    def make(batch: Batch, numbers: Sequence[int]) -> list[Data]:
        here = [asked[number] for number in numbers]
        return [_pass(model, batch, here, chosen, work.plan, top_k, queries is not None, whole)]

    def split(found: Data, numbers: Sequence[int]) -> list[AttentionNumbers]:
        patterns = found.pop("whole", None)
        if on_pattern is not None and patterns is not None:
            hand_over(on_pattern, work.some(numbers).prompts, patterns)
        return _numbers(found).by_prompt([0 if queries is None else len(asked[number]) for number in numbers])

    with _eagerly(model):
        found = run_served(model, work, make, split)
    return join_prompts(work.prompts, found, chosen, None if queries is None else asked)


def score_served_heads(
    model: ServedTransformer, work: Workload, chosen: Sequence[HeadChoice], second: range
) -> HeadKinds:
    """`induction_heads.score_heads` on a served model."""
    model.require("attention")

    def make(batch: Batch, numbers: Sequence[int]) -> list[Data]:
        queries = [list(second)] * len(numbers)
        places = [(row, at) for row in range(len(numbers)) for at in second[:-1]]
        following = [token for row in following_tokens(batch, second) for token in row]
        return [_pass(model, batch, queries, chosen, work.plan, 1, False, False, places, following)]

    def split(found: Data, numbers: Sequence[int]) -> list[Copied]:
        copied = found.pop("copied").unflatten(0, (len(numbers), -1))
        return list(zip(_numbers(found).by_prompt([0] * len(numbers)), copied, strict=True))

    with _eagerly(model):
        return join_scores(chosen, run_served(model, work, make, split, UNIT))


def _numbers(reading: Data) -> AttentionNumbers:
    require_finite(reading.pop("largest_sink"), "attention probabilities")
    return AttentionNumbers(**reading)


def _pass(
    model: ServedTransformer,
    batch: Batch,
    queries: Sequence[Sequence[int]],
    chosen: Sequence[HeadChoice],
    plan: Plan,
    top_k: int,
    one_by_one: bool,
    whole: bool,
    places: Sequence[tuple[int, int]] = (),
    following: Sequence[int] = (),
) -> Data:
    window = Window.over(batch)
    way = Way(model)
    way.follow(plan, window)
    asked = Asked.over(batch, queries, one_by_one).plain
    few = max(1, _AT_ONCE // (batch.inputs["input_ids"].shape[1] * batch.inputs["input_ids"].numel()))
    names: list[str] = []
    for layer, heads in chosen:
        if layer not in model.patterns:
            raise Unsupported(
                f"layer {layer} of {model.name} does not return its attention probabilities, so NDIF cannot read them",
                "Load the model with backend 'local' for it.",
            )
        groups = [heads[start : start + few] for start in range(0, len(heads), few)]
        names.append(f"pattern {layer}")
        options = {"asked": asked, "top_k": top_k, "heads": groups, "whole": whole}
        way.keep(Place("attention_probabilities", layer), names[-1], pick_patterns, options)
    rows, columns = places_at(window, places)
    if following:
        keep_end(way, (rows, columns))
    return {
        "inputs": inputs_of(batch, last=not following or bool(model.head)),
        "steps": way.steps(),
        "read": read_patterns,
        "options": {
            "names": names,
            "following": torch.tensor(following) if following else None,
            "head": model.head,
            "rows": rows,
            "columns": columns,
        },
    }


@contextmanager
def _eagerly(model: ServedTransformer) -> Generator[None]:
    """While this lasts, requests ask for eager attention."""
    before = model.attention
    model.set_attention("eager")
    try:
        yield
    finally:
        model.set_attention("eager" if before == "eager" else "sdpa")
