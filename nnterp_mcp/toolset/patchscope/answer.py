"""The answer to a patchscope: a finding in words, and a table by layer or by source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from nnterp_mcp.formatting import elided, number, plural, probability, quoted, spread
from nnterp_mcp.render import PER_LAYER, by_layer, in_force, left_out, shared_tokens
from nnterp_mcp.table import Column, Kind, Table, cell_text, tabulate
from nnterp_mcp.toolset.patchscope.result import (
    Distribution,
    PatchReading,
    PatchscopeAnswer,
    PatchscopeResult,
    SourceReading,
    StateReading,
)

_BUDGET = 620
"""Tokens that the rows of an answer may take, about."""

_TEXT_LIMIT = 160
"""Characters of a generated text that a row shows."""

_TARGET_LIMIT = 160
"""Characters of the target prompt that an answer repeats."""


def digest(result: PatchscopeResult) -> PatchscopeAnswer:
    """One source as a table of layers, several as a table of sources."""
    one = len(result.sources) == 1
    content, hidden = _by_layer(result.sources[0], result) if one else _by_source(result)
    what = "source" if not one else "source layer" if result.layout == "grid" else "layer"
    notes = _length_note(result.sources[0]) if one else []
    notes += in_force(result.interventions)
    notes += shared_tokens(result.shared)
    notes += left_out(hidden, what, "sources.patches", "source_layers" if one else "fewer of them")
    return PatchscopeAnswer(
        finding=_finding(result.sources[0], result) if one else _summary(result),
        notes=notes,
        model=result.model,
        target=marked(result),
        total=sum(len(source.patches) for source in result.sources),
        truncated=hidden > 0,
        table=content,
        by_layer=_every_layer(result.sources[0], result) if one and hidden and result.layout != "grid" else {},
    )


def _every_layer(source: SourceReading, result: PatchscopeResult) -> dict[str, list[float]]:
    """The probability of one tracked category, the one with the highest peak, with the state of every source layer."""
    names = short_names(source, result)
    if not names:
        return {}
    best = max(range(len(names)), key=lambda index: _peak(source.patches, index).tracked[index][0])
    numbers = {f"{names[best]} p": [patch.tracked[best][0] for patch in source.patches]}
    return by_layer([patch.source_layer for patch in source.patches], numbers)


def marked(result: PatchscopeResult) -> str:
    """The target prompt with the patched token marked; of a long one, what surrounds that token."""
    before, after = result.before, result.after
    room = _TARGET_LIMIT // 2
    before = before if len(before) <= room else f"…{before[-room:]}"
    after = after if len(after) <= room else f"{after[:room]}…"
    return f"{before}«{result.target_token}»{after}"


def _names(source: SourceReading, result: PatchscopeResult) -> list[str]:
    """The tracked categories as a sentence names them; nothing is tracked for a vector without targets."""
    if result.categories or source.token is None:
        return list(result.categories)
    answer = [] if source.answer is None else [f"{result.model}'s own next token {quoted(source.answer)}"]
    return [f"itself ({quoted(source.token)})", *answer]


def _finding(source: SourceReading, result: PatchscopeResult) -> str:
    verb = "makes it name" if source.unpatched.text is not None else "reads as"
    said = "; ".join(
        f"{verb} {name} {_where_said(source.patches, index, result)}"
        for index, name in enumerate(_names(source, result))
    )
    vector = f"the vector {quoted(source.vector or '')}"
    state = f"the state of {quoted(source.token or '')} (position {source.position})"
    put = f"Put into the target prompt, {vector if source.vector else state}"
    return f"{put} {said or _change(source, result)}. {_unpatched(source)}{_by_lens(source, result)}"


def _by_lens(source: SourceReading, result: PatchscopeResult) -> str:
    """At which layers the lenses read the last of the tracked categories from the state itself."""
    names = _names(source, result)
    if not source.states or not names:
        return ""
    own, plain = (_lens_layers(source, len(names) - 1, by) for by in ("tracked", "plain_tracked"))
    return f" In the state itself, the {result.fitted} reads {names[-1]} {own}, the logit lens {plain}."


def _lens_layers(source: SourceReading, index: int, by: str) -> str:
    """The layers at which a lens has a tracked category on top."""
    top = [state.layer for state in source.states if getattr(state, by)[index][1] == 1]
    return _ranges(top, [state.layer for state in source.states])


def _changed(source: SourceReading) -> list[PatchReading]:
    """The patches under which another token is most likely than without."""
    return [patch for patch in source.patches if patch.top[0][0] != source.unpatched.top[0][0]]


def _change(source: SourceReading, result: PatchscopeResult) -> str:
    """Where a vector changes the top token, and to what."""
    changed = _changed(source)
    where = _where(changed, source.patches, result)
    if not changed:
        return f"changes the top token {where}"
    token, count = Counter(patch.top[0][0] for patch in changed).most_common(1)[0]
    return f"changes the top token {where}, most often to {quoted(token)} ({count} of {len(source.patches)})"


def _length_note(source: SourceReading) -> list[str]:
    """The note that says how long a vector is compared with what it replaces: short ones are soon drowned."""
    if source.vector is None:
        return []
    own, replaced = _lengths(source)
    return [f"The vector's length is {own}, that of the states it replaces {replaced}; factor scales it."]


def _lengths(source: SourceReading) -> tuple[str, str]:
    pairs = [patch.lengths for patch in source.patches if patch.lengths is not None]
    return _extent([own for own, _ in pairs]), _extent([replaced for _, replaced in pairs])


def _extent(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def _unpatched(source: SourceReading) -> str:
    top, p = source.unpatched.top[0]
    return f"Unpatched, the target says {quoted(top)} ({number(p)})."


def _where_said(patches: Sequence[PatchReading], index: int, result: PatchscopeResult) -> str:
    """At which layers a category is what the target says, and where it is most likely."""
    best = _peak(patches, index)
    peak = f"(p up to {cell_text(probability(best.tracked[index][0]))}, {_at(best, result)})"
    return f"{_where([patch for patch in patches if patch.says[index]], patches, result)} {peak}"


def _where(chosen: Sequence[PatchReading], patches: Sequence[PatchReading], result: PatchscopeResult) -> str:
    """Some of the patches, by their layers; in a grid only how many."""
    if result.layout == "grid":
        return f"in {len(chosen) or 'none'} of {len(patches)} pairs"
    return _ranges([patch.source_layer for patch in chosen], [patch.source_layer for patch in patches])


def _peak(patches: Sequence[PatchReading], index: int) -> PatchReading:
    """The patch under which a category is most likely."""
    return max(patches, key=lambda patch: patch.tracked[index][0])


def _at(patch: PatchReading, result: PatchscopeResult) -> str:
    same = result.layout == "same"
    return f"layer {patch.source_layer}" if same else f"layer {patch.source_layer} into {patch.target_layer}"


def _ranges(chosen: Sequence[int], read: Sequence[int]) -> str:
    """Layers as runs of those that were read: from layer 20 on; at layers 3 to 9, 12."""
    if not chosen:
        return "at no layer"
    runs: list[list[int]] = []
    for order, layer in enumerate(read):
        if layer not in chosen:
            continue
        if runs and order > 0 and runs[-1][-1] == read[order - 1]:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    if len(runs) == 1 and len(runs[0]) == len(read):
        return "at every layer read"
    if len(runs) == 1 and runs[0][-1] == read[-1] and len(runs[0]) > 1:
        return f"from layer {runs[0][0]} on"
    spans = [f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    shown = [*spans[:4], f"and {len(chosen)} in all"] if len(spans) > 4 else spans
    return f"at layer{'' if len(chosen) == 1 else 's'} {', '.join(shown)}"


def _by_layer(source: SourceReading, result: PatchscopeResult) -> tuple[Table, int]:
    grid, same = result.layout == "grid", result.layout == "same"
    patches = _best_of_each(source.patches) if grid else source.patches
    shown = spread(range(len(patches)), _landmarks(patches), _rows(source.unpatched, result) - 1)
    text = source.unpatched.text is not None
    columns: list[Column[Distribution]] = [
        Column("layer" if same else "from layer", lambda said: getattr(said, "source_layer", "unpatched")),
        Column(
            "best into" if grid else "into layer",
            lambda said: getattr(said, "target_layer", None),
            shown=not same,
        ),
        Column("text", lambda said: elided(said.text or "", _TEXT_LIMIT), Kind.TEXT, text),
        Column("top tokens", lambda said: said.top, Kind.TOP, not text),
        Column("entropy", lambda said: said.entropy),
        *(
            Column(f"{name} p, rank", lambda said, index=index: _ranked(said, index), Kind.RANKED)
            for index, name in enumerate(short_names(source, result))
        ),
        *_lens_columns(source, result),
    ]
    return tabulate(columns, [source.unpatched, *(patches[at] for at in shown)]), len(patches) - len(shown)


def _lens_columns(source: SourceReading, result: PatchscopeResult) -> list[Column[Distribution]]:
    """The top tokens of both lenses in the state of a row's source layer."""
    states = {state.layer: state for state in source.states}

    def read(said: Distribution) -> StateReading | None:
        return states.get(said.source_layer) if isinstance(said, PatchReading) else None

    if result.fitted is None:
        return []
    return [
        Column(result.fitted.kind, lambda said: (at := read(said)) and at.top, Kind.TOP),
        Column("logit lens", lambda said: (at := read(said)) and at.plain_top, Kind.TOP),
    ]


def _ranked(said: Distribution, index: int) -> tuple[float, int] | None:
    """Probability and rank of a tracked category; nothing where it has no token."""
    return said.tracked[index] if said.tracked[index][1] else None


def short_names(source: SourceReading, result: PatchscopeResult) -> list[str]:
    """The tracked categories as a column names them."""
    if result.categories or source.token is None:
        return list(result.categories)
    return ["itself"] if source.answer is None else ["itself", "own next"]


def _best_of_each(patches: Sequence[PatchReading]) -> list[PatchReading]:
    """For each source layer, the patch under which a tracked category is most likely."""
    best: dict[int, PatchReading] = {}
    for patch in patches:
        known = best.get(patch.source_layer)
        if known is None or _tracked_probability(patch) > _tracked_probability(known):
            best[patch.source_layer] = patch
    return list(best.values())


def _tracked_probability(patch: PatchReading) -> float:
    return max((p for p, _ in patch.tracked), default=patch.top[0][1])


def _landmarks(patches: Sequence[PatchReading]) -> list[int]:
    """The rows to show whatever else is left out: the ends, each category's peak, and where what is said changes."""
    peaks = [patches.index(_peak(patches, category)) for category in range(len(patches[0].tracked))]
    turns = [index for index in range(1, len(patches)) if patches[index].says != patches[index - 1].says]
    return [0, len(patches) - 1, *peaks, *turns, *(index - 1 for index in turns)]


def _rows(said: Distribution, result: PatchscopeResult) -> int:
    """Rows that the budget allows; a top token counts 10 tokens, a text a third of its characters, a category 12."""
    main = 10 * len(said.top) if said.text is None else max(10, min(_TEXT_LIMIT, 4 * len(said.text)) // 3)
    room = _BUDGET if result.layout == "grid" else _BUDGET - PER_LAYER * len(result.sources[0].patches)
    lenses = 20 if result.fitted else 0
    return max(4, room // (main + lenses + 12 * len(said.tracked) + (12 if result.layout == "same" else 18)))


def _by_source(result: PatchscopeResult) -> tuple[Table, int]:
    first = result.sources[0]
    generated, vectors = first.unpatched.text is not None, first.vector is not None
    names = list(result.categories) or ([] if vectors else ["itself", "own next"])
    columns: list[Column[SourceReading]] = [
        Column("vector", lambda source: elided(source.vector or "", 40), shown=vectors),
        Column("length", lambda source: _lengths(source)[0], shown=vectors),
        Column("replaces", lambda source: _lengths(source)[1], shown=vectors),
        Column("next token changed", lambda source: _bare(_changed(source), source, result), shown=vectors),
        Column("prompt", lambda source: source.prompt, shown=not vectors),
        Column("position", lambda source: source.position, shown=not vectors),
        Column("token", lambda source: source.token, Kind.TEXT, not vectors),
        Column("own next token", lambda source: source.answer, Kind.TEXT, not result.categories and not vectors),
        *(column for index, name in enumerate(names) for column in _summit(index, name, generated, result)),
        *_lens_summits(names, result),
        Column("from layer", lambda source: _place(_telling(source), result), shown=generated),
        Column("text", lambda source: elided(_telling(source).text or "", _TEXT_LIMIT), Kind.TEXT, generated),
    ]
    width = (60 if vectors else 24) + 20 * len(names) + (_TEXT_LIMIT // 3 if generated else 0)
    shown = result.sources[: max(4, _BUDGET // width)]
    return tabulate(columns, shown), len(result.sources) - len(shown)


def _lens_summits(names: Sequence[str], result: PatchscopeResult) -> list[Column[SourceReading]]:
    """The layers at which both lenses read the last of the tracked categories from the states themselves."""

    def layers(by: str) -> Callable[[SourceReading], str | None]:
        def shown(source: SourceReading) -> str | None:
            last = len(names) - 1
            return _lens_layers(source, last, by).removeprefix("at ") if last < len(source.unpatched.tracked) else None

        return shown

    if result.fitted is None or not names:
        return []
    return [
        Column(f"{names[-1]} by {result.fitted.kind}", layers("tracked")),
        Column("by logit lens", layers("plain_tracked")),
    ]


def _bare(chosen: Sequence[PatchReading], source: SourceReading, result: PatchscopeResult) -> str:
    """Some of a source's patches by their layers, as a cell says it."""
    return _where(chosen, source.patches, result).removeprefix("at ").removeprefix("in ")


def _place(patch: PatchReading, result: PatchscopeResult) -> str:
    return _at(patch, result).removeprefix("layer ")


def _summit(index: int, name: str, generated: bool, result: PatchscopeResult) -> list[Column[SourceReading]]:
    """Where a category is said, its highest probability, and where that is; nothing where it is not tracked."""

    def best(source: SourceReading) -> PatchReading | None:
        return _peak(source.patches, index) if index < len(source.unpatched.tracked) else None

    def said(source: SourceReading) -> str | None:
        return best(source) and _bare([patch for patch in source.patches if patch.says[index]], source, result)

    return [
        Column(f"{name} {'named' if generated else 'said'}", said),
        Column(f"{name} best p", lambda source: (at := best(source)) and at.tracked[index][0], Kind.PROBABILITY),
        Column("at", lambda source: (at := best(source)) and _place(at, result)),
    ]


def _telling(source: SourceReading) -> PatchReading:
    """The patch whose text to show: the first to name the tracked category, else that which makes it most likely."""
    naming = (patch for patch in source.patches if any(patch.says))
    return next(naming, None) or max(source.patches, key=_tracked_probability)


def _summary(result: PatchscopeResult) -> str:
    sources = result.sources
    vectors = sources[0].vector is not None
    prompts = len({source.prompt for source in sources})
    states = f"{plural(len(sources), 'state')} from {plural(prompts, 'prompt')}"
    put = f"Of {plural(len(sources), 'vector') if vectors else states} put"
    names = list(result.categories) or ([] if vectors else ["itself", "the model's own next token"])
    read = [f"{sum(_is_said(source, index) for source in sources)} as {name}" for index, name in enumerate(names)]
    what = f"these read, at one layer at least: {', '.join(read)}"
    changing = sum(bool(_changed(source)) for source in sources)
    found = what if read else f"{changing} change its top token at one layer at least"
    return f"{put} into the target prompt, {found}. {_unpatched(sources[0])}"


def _is_said(source: SourceReading, index: int) -> bool:
    return index < len(source.unpatched.tracked) and any(patch.says[index] for patch in source.patches)
