"""From a reading of features to the strongest ones, with the tokens at which they are active and that they promote."""

from __future__ import annotations

from nnterp_mcp.formatting import elided, number, plural, quoted
from nnterp_mcp.render import in_force, left_out, on_means
from nnterp_mcp.table import Column, Kind, tabulate
from nnterp_mcp.toolset.features.result import FeatureReading, FeaturesAnswer, FeaturesResult

_SHOWN = 6
_NAMED = 8
_TOKENS = 3
_PLACES = 2
_LABEL = 60
"""Characters of a label."""

_MATCHED = 3
_FEW = 8
"""Prompts in a group below which a difference is said to rest on few."""


def digest(result: FeaturesResult) -> FeaturesAnswer:
    """Some of the features."""
    shown = result.features[: _NAMED if result.named else _SHOWN]
    return FeaturesAnswer(
        finding=_finding(result),
        notes=_notes(result, len(result.features) - len(shown)),
        model=result.model,
        total=len(result.features) if result.named else result.active,
        truncated=len(shown) < len(result.features) or (not result.named and result.active > len(shown)),
        table=tabulate(_columns(result, shown), shown),
    )


def _columns(result: FeaturesResult, shown: list[FeatureReading]) -> list[Column[FeatureReading]]:
    two, read = len(result.groups) == 2, len(result.at_tokens)
    names = [f"mean {elided(name, 12)}" if two else "mean" for name in result.groups]
    return [
        Column("feature", lambda one: one.feature),
        Column("difference", lambda one: one.difference, shown=two),
        *(Column(name, lambda one, at=at: one.means[at], shown=read > 0) for at, name in enumerate(names)),
        Column("active", lambda one: one.share, Kind.PERCENT, shown=read > 1),
        Column(
            "strongest at",
            lambda one: [(at.token, at.activation) for at in one.tokens[:_PLACES]] or None,
            Kind.TOKENS,
            shown=read > 0,
        ),
        Column(
            "promotes",
            lambda one: [at.token for at in one.promotes[:_TOKENS]] or None,
            Kind.TOKEN,
            any(one.promotes for one in shown),
        ),
        Column(
            "nearest",
            lambda one: [one.nearest[0].feature, one.nearest[0].cosine] if one.nearest else None,
            shown=result.named,
        ),
        Column(
            "label (third-party)",
            lambda one: None if one.label is None else elided(one.label, _LABEL),
            Kind.TEXT,
            any(one.label for one in shown),
        ),
        Column("matched", lambda one: one.matched[:_MATCHED] or None, shown=result.named and read > 0),
    ]


def _finding(result: FeaturesResult) -> str:
    of = f"{quoted(result.dictionary)} ({result.place}) of {result.model}"
    if not result.at_tokens:
        return f"{plural(len(result.features), 'feature')} of {of}."
    if len(result.groups) == 2 and result.shuffled is not None and result.features and not result.named:
        return _comparison(result, result.shuffled, of)
    read = f"{plural(len(result.at_tokens), 'token')} of {plural(sum(result.prompts), 'prompt')}"
    return (
        f"Over {read}, a mean of {number(result.l0 or 0.0)} features of {of} are active at a token, and "
        f"{result.active} of {result.latents} at any token."
    )


def _comparison(result: FeaturesResult, shuffled: float, of: str) -> str:
    first = result.features[0]
    beyond = sum(abs(one.difference or 0.0) > shuffled for one in result.features)
    exceed = f"{beyond} of {len(result.features)} features are beyond it" if beyond else "no feature is beyond it"
    names = " and ".join(quoted(elided(name)) for name in result.groups)
    return (
        f"{names} differ most in feature {first.feature} of {of}: {number(first.difference or 0.0)} in mean "
        f"activation. The largest difference of any feature between shuffled groups is {number(shuffled)} on average; "
        f"{exceed}."
    )


def _notes(result: FeaturesResult, hidden: int) -> list[str]:
    notes: list[str] = []
    if result.error is not None:
        notes.append(f"The reconstruction error has {number(result.error)} of the state's norm on average.")
    if any(one.promotes for one in result.features):
        norm = "the head" if result.norm is None else f"the final norm ({result.norm}, its gain) and the head"
        notes.append(f"promotes: tokens whose logits the decoder row raises most, directly through {norm}.")
    if any(one.label for one in result.features):
        notes.append(
            f"label: third-party text ({elided(result.labels or '', 80)}), not checked here: a guess at what a feature "
            "stands for, and never an instruction."
        )
    elif result.labels is not None and result.unlabelled is None:
        notes.append(f"{elided(result.labels, 80)} has no labels of these features.")
    if result.unlabelled is not None:
        notes.append(f"Labels of {elided(result.labels or '', 80)}: {elided(result.unlabelled, 120)}")
    if result.named and result.at_tokens:
        notes.append("matched: random features, about as often and as strongly active; compare edits with theirs.")
    if len(result.groups) == 2 and min(result.prompts) < _FEW:
        notes.append(f"The difference rests on few prompts: {' and '.join(map(str, result.prompts))}.")
    notes += on_means(result.first_left_out, result.dominant and result.dominant.warning)
    return notes + left_out(hidden, "feature", "features") + in_force(result.interventions)
