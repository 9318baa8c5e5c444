"""From a result of `make_vector` to its answer, and the answer as text."""

from __future__ import annotations

from nnterp_mcp.formatting import brief, number, percent, plural, spread
from nnterp_mcp.render import PER_LAYER, by_layer, in_force, left_out, on_means
from nnterp_mcp.table import Column, Kind, Table, tabulate
from nnterp_mcp.toolset.make_vector.result import (
    AlignedLayer,
    AlignmentFacts,
    DirectionFacts,
    MakeVectorAnswer,
    MakeVectorResult,
)

_BUDGET = 520
"""Tokens that the rows of the table and the line of all layers may take, about."""

_ROW = 36
"""Tokens of a row, about."""

_COARSE = 5
"""Prompts a side below which the figures say little."""

_LAYERS = 10
"""Layers of an alignment search that are shown."""

_CERTAIN = 0.98
"""The mean probability of the answers above which the loss was too flat to find a subspace exactly."""

_COARSE_PAIRS = 20
"""Pairs below which a share is coarse."""


def digest(result: MakeVectorResult) -> MakeVectorAnswer:
    """The directions by layer, the best one among them."""
    if result.alignment is not None:
        return _digest_alignment(result, result.alignment)
    rows = result.directions
    best = _best(result)
    marks = [0, len(rows) - 1] if best is None else [rows.index(best), 0, len(rows) - 1]
    room = max(4, (_BUDGET - PER_LAYER * len(rows)) // _ROW)
    shown = [rows[index] for index in spread(range(len(rows)), marks, room)]
    return MakeVectorAnswer(
        finding=_finding(result, best),
        notes=_notes(result, len(rows) - len(shown)),
        model=result.model,
        vector=result.card.name,
        total=len(rows),
        truncated=len(shown) < len(rows),
        table=_table(shown),
        by_layer=_every_layer(result) if len(shown) < len(rows) else {},
    )


def _best(result: MakeVectorResult) -> DirectionFacts | None:
    """The layer at which unseen prompts are told apart best, the middle one of equals."""
    rated = [facts for facts in result.directions if facts.held_out is not None]
    top = max((facts.held_out or 0 for facts in rated), default=0)
    equals = [facts for facts in rated if facts.held_out == top]
    return equals[len(equals) // 2] if equals else None


def _every_layer(result: MakeVectorResult) -> dict[str, list[float]]:
    """The area under the ROC curve on unseen prompts after each layer; the norm where no prompts are held out."""
    rated = [facts for facts in result.directions if facts.held_out is not None]
    layers = [facts.layer for facts in rated or result.directions if facts.layer is not None]
    if rated:
        return by_layer(layers, {"held out": [facts.held_out or 0.0 for facts in rated]})
    return by_layer(layers, {"norm": [facts.norm for facts in result.directions]})


def _finding(result: MakeVectorResult, best: DirectionFacts | None) -> str:
    card = result.card
    if result.deleted:
        return f"The vector {card.name} ({card.method}) of {result.model} is deleted."
    rows = result.directions
    norms = [number(norm) for norm in (min(card.norms), max(card.norms))]
    where = (
        f"{plural(len(rows), 'layer')}, norm {norms[0]} to {norms[1]}" if card.layers else f"any layer, norm {norms[0]}"
    )
    made = f"The vector {card.name} of {result.model} is made ({card.method}; {where})"
    if best is None or best.held_out is None:
        return f"{made}."
    chance = "no better than chance" if best.held_out <= 0.5 else f"{number(best.held_out)} (chance: 0.5)"
    return (
        f"{made}. Of unseen prompts, a positive one projects further on it than a negative one with probability "
        f"{chance} at layer {best.layer}{_choice(result)}."
    )


def _choice(result: MakeVectorResult) -> str:
    """That the layer was picked by this very figure."""
    return f", the best of {len(result.directions)}" if len(result.directions) > 1 else ""


def _notes(result: MakeVectorResult, hidden: int) -> list[str]:
    notes = [f"It replaces a vector of that name, made {result.replaced}."] if result.replaced else []
    if any(facts.effect is not None for facts in result.directions):
        notes.append(
            "d is measured on the very prompts that made the vector and is large even for sets that differ in nothing; "
            "held out is not. Neither shows that the model uses the direction: steer with control=true does."
        )
    if len(result.prompts) == 2 and min(result.prompts) < _COARSE:
        notes.append(f"With {result.prompts[0]} and {result.prompts[1]} prompts these figures are coarse.")
    notes += on_means(result.first_left_out, result.dominant and result.dominant.warning)
    notes += in_force(result.interventions)
    return notes + left_out(hidden, "layer", "directions")


def _table(shown: list[DirectionFacts]) -> Table:
    columns: list[Column[DirectionFacts]] = [
        Column("layer", lambda facts: "any" if facts.layer is None else facts.layer),
        Column("norm", lambda facts: facts.norm),
        Column("norm / stream", lambda facts: facts.norm / facts.stream if facts.stream else None),
        Column("positive mean", lambda facts: facts.positive),
        Column("negative mean", lambda facts: facts.negative),
        Column("d", lambda facts: facts.effect),
        Column("held out", lambda facts: facts.held_out),
        Column("explained", lambda facts: facts.explained),
    ]
    measured = [column for column in columns if any(column.of(facts) is not None for facts in shown)]
    return tabulate(measured, shown)


def _digest_alignment(result: MakeVectorResult, found: AlignmentFacts) -> MakeVectorAnswer:
    """Interchange accuracies with their controls, by layer."""
    at = result.aligned.index(_best_aligned(result))
    shown = [result.aligned[one] for one in spread(range(len(result.aligned)), [at], _LAYERS)]
    columns: list[Column[AlignedLayer]] = [
        Column("layer", lambda one: one.layer),
        Column("accuracy", lambda one: one.accuracy, Kind.HUNDREDTHS),
        Column("whole state", lambda one: one.whole, Kind.HUNDREDTHS),
        Column("nothing", lambda one: one.unpatched, Kind.HUNDREDTHS),
        Column("random, most", lambda one: max(one.randoms), Kind.HUNDREDTHS),
        Column("shuffled", lambda one: one.shuffled, Kind.HUNDREDTHS),
        Column("untrained", lambda one: one.untrained, Kind.HUNDREDTHS, found.no_untrained is None),
    ]
    hidden = len(result.aligned) - len(shown)
    return MakeVectorAnswer(
        finding=_aligned(result, found),
        notes=_notes_on_alignment(result, found) + left_out(hidden, "layer", "aligned"),
        model=result.model,
        vector=result.card.name,
        total=len(result.aligned),
        truncated=hidden > 0,
        table=tabulate(columns, shown),
    )


def _best_aligned(result: MakeVectorResult) -> AlignedLayer:
    """The layer of the highest accuracy, of equals the one of the most certain answers."""
    return max(result.aligned, key=lambda one: (one.accuracy, one.certainty))


def _aligned(result: MakeVectorResult, found: AlignmentFacts) -> str:
    best = _best_aligned(result)
    space = "direction" if found.dimensions == 1 else f"subspace of {found.dimensions} dimensions"
    choice = f", the best of {len(result.aligned)}" if len(result.aligned) > 1 else ""
    reaching = sum(value >= best.accuracy for value in best.randoms)
    share = number(brief((1 + reaching) / (len(best.randoms) + 1)))
    untrained = ""
    if best.untrained is not None:
        alone = percent(best.untrained_unpatched or 0.0)
        untrained = f", one found in an untrained model {percent(best.untrained)} there (nothing {alone})"
    said = (
        f"The vector {result.card.name} of {result.model} is made (alignment_search, {found.train} pairs). With the "
        f"source's part in this {space} put in after layer {best.layer}{choice}, {percent(best.accuracy)} of "
        f"{found.test} other pairs give the counterfactual answer (whole state {percent(best.whole)}, nothing "
        f"{percent(best.unpatched)}). {reaching or 'None'} of {len(best.randoms)} random ones "
        f"{'do' if reaching > 1 else 'does'} as well (at most {percent(max(best.randoms))}; (n + 1) / (N + 1) = "
        f"{share}); one trained on shuffled answers has {percent(best.shuffled)}{untrained}."
    )
    if best.control >= best.accuracy:
        return f"{said} A control does as well: this shows no variable."
    if best.certainty >= _CERTAIN:
        return (
            f"{said} Answers are nearly certain (mean p {number(round(best.certainty, 3))}), where the loss is flat: "
            f"the {space.split(' of ')[0]} is found only roughly."
        )
    return said


def _notes_on_alignment(result: MakeVectorResult, found: AlignmentFacts) -> list[str]:
    notes = [f"It replaces a vector of that name, made {result.replaced}."] if result.replaced else []
    best = _best_aligned(result)
    if best.accuracy > best.control:
        notes.append(
            "It makes the model answer so; verify_claim shows whether the model uses it, project_out removes it."
        )
    if found.own:
        notes.append("The counterfactual answers are the model's own to the source prompts.")
    if found.shared:
        notes.append(f"{found.shared} of the {found.test} pairs share a prompt with those that trained it.")
    if found.test < _COARSE_PAIRS:
        notes.append(f"Shares of {plural(found.test, 'pair')} are coarse.")
    if found.no_untrained is not None:
        notes.append(f"No randomly initialised model was compared: {found.no_untrained}")
    return notes + in_force(result.interventions)
