"""Which token of a corrupted prompt stands for which token of a clean one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.request.positions import PositionSpec

LabelledSpans = Mapping[str, tuple[Sequence[PositionSpec], Sequence[PositionSpec]]]
"""By label, the positions in the clean prompt and those in the corrupted one."""

_SPANS = (
    'Name what corresponds, such as positions={"subject": {"clean": {"text": "Rome"}, '
    '"corrupted": {"text": "New York"}}, "end": "last"}.'
)


@dataclass(frozen=True)
class Span:
    """Tokens that are patched together.

    Attributes:
        label: What to call them.
        clean: Their positions in the clean prompt.
        corrupted: Those in the corrupted prompt, one for each.
    """

    label: str
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]


def align(pairs: Sequence[Pair], asked: Sequence[PositionSpec] | LabelledSpans) -> list[list[Span]]:
    """Finds the spans of each pair: token by token where prompts are equally long, or by labels.

    Spans of unequal length under one label correspond from their ends on: the last token of one is that of the other,
    and tokens of the longer one that are left over at its beginning are not patched.

    Args:
        asked: Positions, each a span of its own, or labelled spans.

    Returns:
        For each pair its spans, as many for each.

    Raises:
        InvalidRequest: A position does not exist, or tokens do not correspond one to one.
    """
    if isinstance(asked, Mapping):
        return [[_labelled(pair, label, *specs) for label, specs in asked.items()] for pair in pairs]
    found = [_token_by_token(pair, asked) for pair in pairs]
    for pair, spans in zip(pairs, found, strict=True):
        if len(spans) != len(found[0]):
            raise InvalidRequest(
                f"positions are {len(found[0])} tokens of clean prompt {pairs[0].index} and {len(spans)} of clean "
                f"prompt {pair.index}: there is no mean over prompts unless tokens correspond.",
                _SPANS,
            )
    return found


def _token_by_token(pair: Pair, asked: Sequence[PositionSpec]) -> list[Span]:
    if pair.corrupted is not None and len(pair.corrupted) != len(pair.clean):
        raise InvalidRequest(
            f"pair {pair.index} has {len(pair.clean)} tokens in its clean prompt and {len(pair.corrupted)} in its "
            "corrupted one: tokens do not correspond.",
            f"Make them equally long (tokenize shows tokens). {_SPANS}",
        )
    return [Span(str(at), (at,), (at,)) for at in resolve_positions(asked, pair.clean.prompt)]


def _labelled(pair: Pair, label: str, clean: Sequence[PositionSpec], corrupted: Sequence[PositionSpec]) -> Span:
    one = resolve_positions(clean, pair.clean.prompt)
    other = one if pair.corrupted is None else resolve_positions(corrupted, pair.corrupted.prompt)
    count = min(len(one), len(other))
    return Span(label, tuple(one[-count:]), tuple(other[-count:]))
