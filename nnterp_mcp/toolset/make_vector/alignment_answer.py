"""From an alignment search to its answer."""

from __future__ import annotations

from nnterp_mcp.formatting import brief, number, percent, plural, spread
from nnterp_mcp.render import left_out
from nnterp_mcp.table import Column, Kind, tabulate
from nnterp_mcp.toolset.make_vector.result import AlignedLayer, AlignmentFacts, MakeVectorAnswer, MakeVectorResult

_ROWS = 10

_CERTAIN = 0.98
"""The mean probability of the answers above which the loss was too flat to find a subspace exactly."""

_COARSE = 20
"""Pairs below which a share is coarse."""


def digest_alignment(result: MakeVectorResult, found: AlignmentFacts) -> MakeVectorAnswer:
    """Interchange accuracies with their controls, by layer."""
    at = found.layers.index(found.best)
    shown = [found.layers[one] for one in spread(range(len(found.layers)), [at], _ROWS)]
    columns: list[Column[AlignedLayer]] = [
        Column("layer", lambda one: one.layer),
        Column("accuracy", lambda one: one.accuracy, Kind.HUNDREDTHS),
        Column("whole state", lambda one: one.whole, Kind.HUNDREDTHS),
        Column("nothing", lambda one: one.unpatched, Kind.HUNDREDTHS),
        Column("random, most", lambda one: max(one.randoms), Kind.HUNDREDTHS),
        Column("shuffled", lambda one: one.shuffled, Kind.HUNDREDTHS),
        Column("untrained", lambda one: one.untrained, Kind.HUNDREDTHS, found.no_untrained is None),
    ]
    hidden = len(found.layers) - len(shown)
    return MakeVectorAnswer(
        finding=_finding(result, found),
        notes=_notes(result, found) + left_out(hidden, "layer", "alignment.layers"),
        model=result.model,
        vector=result.card.name,
        total=len(found.layers),
        truncated=hidden > 0,
        table=tabulate(columns, shown),
    )


def _finding(result: MakeVectorResult, found: AlignmentFacts) -> str:
    best = found.best
    space = "direction" if found.dimensions == 1 else f"subspace of {found.dimensions} dimensions"
    choice = f", the best of {len(found.layers)}" if len(found.layers) > 1 else ""
    reaching = sum(value >= best.accuracy for value in best.randoms)
    share = number(brief((1 + reaching) / (len(best.randoms) + 1)))
    untrained = "" if best.untrained is None else f", one found in an untrained model {percent(best.untrained)}"
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


def _notes(result: MakeVectorResult, found: AlignmentFacts) -> list[str]:
    notes = [f"It replaces a vector of that name, made {result.replaced}."] if result.replaced else []
    notes.append("It makes the model answer so; verify_claim shows whether the model uses it, project_out removes it.")
    if found.own:
        notes.append("The counterfactual answers are the model's own to the source prompts.")
    if found.shared:
        notes.append(f"{found.shared} of the {found.test} pairs share a prompt with those that trained it.")
    if found.test < _COARSE:
        notes.append(f"Shares of {plural(found.test, 'pair')} are coarse.")
    if found.no_untrained is not None:
        notes.append(f"No randomly initialised model was compared: {found.no_untrained}")
    return notes
