"""Attention on a served model, which has to attend eagerly for it; patterns stay there unless they are small."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch

from nnterp_mcp.engine.executors.ndif.backend import batches_of, counted, in_requests, inputs_of
from nnterp_mcp.engine.executors.ndif.kernels import Data, pick_patterns, read_patterns
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.wire_format import Way, keep_end, places_at
from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.attention_patterns import (
    TARGETS,
    Asked,
    AttentionNumbers,
    AttentionReadings,
    HeadChoice,
    OnPattern,
    in_order_of_prompts,
)
from nnterp_mcp.experiments.induction_heads import HeadKinds, RepeatedTokens
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt

_AT_ONCE = 1 << 24
"""Attention probabilities that are reduced at one time."""

_WHOLE = 1 << 18
"""Attention probabilities that are brought here whole, over all prompts of a call: a megabyte."""


def read_served_attention(
    model: ServedTransformer,
    prompts: Sequence[EncodedPrompt],
    chosen: Sequence[HeadChoice],
    queries: Sequence[Sequence[int]] | None = None,
    *,
    top_k: int = 3,
    plan: Plan = NOTHING,
    batch_tokens: int = 4096,
    on_batch: Callable[[int], None] = lambda prompts_done: None,
    on_pattern: OnPattern | None = None,
    offer: Callable[[Callable[[], AttentionReadings]], None] = lambda so_far: None,
) -> AttentionReadings:
    """`attention.read_attention` on a served model; larger patterns than a megabyte are not handed over whole, and
    nothing is offered before all is read."""
    model.require("attention")
    means = [range(1, len(prompt.ids)) for prompt in prompts] if queries is None else queries
    asked = {prompt.index: sorted(at) for prompt, at in zip(prompts, means, strict=True)}
    count = sum(len(heads) for _, heads in chosen)
    whole = on_pattern is not None and sum(len(prompt.ids) ** 2 for prompt in prompts) * count <= _WHOLE
    batches = batches_of(model, prompts, batch_tokens)
    passes: list[list[Data]] = []
    for batch in batches:
        here = [asked[prompt.index] for prompt in batch.prompts]
        passes.append([_pass(model, batch, here, chosen, plan, top_k, queries is not None, whole)])
    done = list(counted(batches))
    with _eagerly(model):
        found = in_requests(model, passes, lambda groups: on_batch(done[groups - 1]))
    parts: list[AttentionNumbers] = []
    for batch, (reading,) in zip(batches, found, strict=True):
        patterns = reading.pop("whole", None)
        parts.append(_numbers(reading))
        if on_pattern is not None and patterns is not None:
            for prompt, padding, pattern in zip(batch.prompts, batch.padding, patterns, strict=True):
                on_pattern(prompt.index, pattern[:, padding:, padding:])
    order = [prompt.index for batch in batches for prompt in batch.prompts]
    return in_order_of_prompts(parts, order, chosen, {} if queries is None else asked)


def score_served_heads(
    model: ServedTransformer,
    repeated: RepeatedTokens,
    chosen: Sequence[HeadChoice],
    *,
    plan: Plan = NOTHING,
    batch_tokens: int = 4096,
    on_batch: Callable[[int], None] = lambda sequences_done: None,
) -> HeadKinds:
    """`induction.score_heads` on a served model."""
    model.require("attention")
    batches = batches_of(model, repeated.prompts, batch_tokens)
    passes: list[list[Data]] = []
    for batch in batches:
        queries = [list(repeated.second)] * len(batch.prompts)
        places = [(row, at) for row in range(len(batch.prompts)) for at in repeated.second[:-1]]
        following = [token for prompt in batch.prompts for token in prompt.ids[repeated.second.start + 1 :]]
        passes.append([_pass(model, batch, queries, chosen, plan, 1, False, False, places, following)])
    done = list(counted(batches))
    with _eagerly(model):
        found = in_requests(model, passes, lambda groups: on_batch(done[groups - 1]))
    copied = torch.cat(
        [one.pop("copied").unflatten(0, (len(batch.prompts), -1)) for batch, (one,) in zip(batches, found, strict=True)]
    )
    order = [prompt.index for batch in batches for prompt in batch.prompts]
    rows = sorted(range(len(order)), key=order.__getitem__)
    mass = torch.cat([_numbers(one).mass for (one,) in found])[rows]
    scores = {name: mass[..., TARGETS.index(name)] for name in ("previous", "duplicate", "induction")}
    return HeadKinds(
        heads=[(layer, head) for layer, heads in chosen for head in heads],
        **scores,
        probability=copied[rows].exp().mean(-1),
        log_probability=copied[rows].mean(-1),
    )


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
