"""Resolves positions to tokens. A position always refers to the unpadded prompt."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.text.chats import Chat, Span
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.request.positions import PositionSpec, TextPosition, TurnPosition


def resolve_positions(asked: Sequence[PositionSpec], prompt: EncodedPrompt) -> list[int]:
    """Turns positions into sorted token indices of one prompt.

    Args:
        asked: Integers from either end, `last`, `all`, Python-style ranges, pieces of the prompt's text, or turns of
            a chat.

    Returns:
        Indices from 0 to `len(prompt.ids) - 1`, in ascending order, each once.

    Raises:
        InvalidRequest: A position does not exist in the prompt.
    """
    return sorted({index for spec in asked for index in _resolve(spec, prompt)})


def resolve_averaged(asked: Sequence[PositionSpec], prompt: EncodedPrompt) -> list[int]:
    """Turns positions whose states are averaged, or projected out, into sorted token indices of one prompt.

    They are those of `resolve_positions`, except that `all` leaves the first token out of a prompt that has others. In
    many models its state is hundreds of times longer than any other, an attention sink, so that a mean over all tokens
    is mostly that state. The range `0:` includes it.

    Raises:
        InvalidRequest: A position does not exist in the prompt.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (2023); Sun et al., "Massive
    Activations in Large Language Models" (2024).
    """
    if len(prompt.ids) == 1:
        return resolve_positions(asked, prompt)
    return resolve_positions(["1:" if spec == "all" else spec for spec in asked], prompt)


def _resolve(spec: PositionSpec, prompt: EncodedPrompt) -> list[int]:
    check_cancelled()
    length = len(prompt.ids)
    where = f"prompt {prompt.index} has positions 0 to {length - 1}"
    if isinstance(spec, TextPosition):
        return _tokens_of_text(spec, prompt)
    if isinstance(spec, TurnPosition):
        return _tokens_of_turns(spec, prompt)
    if isinstance(spec, int):
        if not -length <= spec < length:
            raise InvalidRequest(f"position {spec} does not exist: {where}.")
        return [spec % length]
    if spec == "last":
        return [length - 1]
    if spec == "all":
        return list(range(length))
    parts = [int(part) if part.strip() else None for part in spec.split(":")]
    found = list(range(length)[slice(*parts)])
    if not found:
        raise InvalidRequest(f"the range {spec!r} holds no position: {where}.")
    return found


def _tokens_of_text(spec: TextPosition, prompt: EncodedPrompt) -> list[int]:
    _require_spans(prompt)
    return _tokens_in([_find(spec.text, spec.occurrence, [(0, len(prompt.text))], "", prompt)], prompt)


def _tokens_of_turns(spec: TurnPosition, prompt: EncodedPrompt) -> list[int]:
    chat = _require_chat(prompt)
    turns = _turns(spec, chat, prompt)
    if spec.part == "after":
        contents = [_content(turn, chat, prompt) for turn in range(len(chat.messages))]
        parts = [_following(turn, contents, len(chat.text)) for turn in turns]
    else:
        parts = [_content(turn, chat, prompt) for turn in turns]
    where = f"{'what follows ' if spec.part == 'after' else ''}turn{'s' if len(turns) > 1 else ''} " + ", ".join(
        map(str, turns)
    )
    if spec.text is not None:
        return _tokens_in([_find(spec.text, spec.occurrence, parts, f"{where} of ", prompt)], prompt)
    tokens = _tokens_in(parts, prompt)
    if spec.part == "after":
        tokens = [token for token in tokens if any(_lies_in(prompt.spans[token], part) for part in parts)]
    if not tokens:
        raise InvalidRequest(f"{where} of prompt {prompt.index} has no tokens.")
    return tokens


def _turns(spec: TurnPosition, chat: Chat, prompt: EncodedPrompt) -> list[int]:
    roles = [str(message["role"]) for message in chat.messages]
    turns = [turn for turn, role in enumerate(roles) if spec.role in (None, role)]
    if not turns:
        known = ", ".join(dict.fromkeys(roles))
        raise InvalidRequest(f"prompt {prompt.index} has no turn of the role {spec.role!r}: its roles are {known}.")
    if spec.turn is None:
        return turns
    if not -len(turns) <= spec.turn < len(turns):
        kind = "" if spec.role is None else f" of the role {spec.role!r}"
        raise InvalidRequest(
            f"turn {spec.turn}{kind} does not exist: prompt {prompt.index} has turns 0 to {len(turns) - 1}{kind}."
        )
    return [turns[spec.turn]]


def _content(turn: int, chat: Chat, prompt: EncodedPrompt) -> Span:
    span = chat.content_span(turn)
    if span is None:
        raise InvalidRequest(
            f"the chat template does not write the content of turn {turn} of prompt {prompt.index} once and as it is, "
            "so its tokens are not known",
            "Give positions as integers or by their text; tokenize lists them.",
        )
    return span


def _following(turn: int, contents: Sequence[Span], length: int) -> Span:
    """The text between a content and the next one; templates may write turns in another order."""
    end = contents[turn][1]
    starts = [start for other, (start, _) in enumerate(contents) if other != turn and start >= end]
    return end, min(starts, default=length)


def _require_chat(prompt: EncodedPrompt) -> Chat:
    if prompt.chat is None:
        raise InvalidRequest(
            f"prompt {prompt.index} is plain text and has no turns", "Give it as chat messages [{role, content}]."
        )
    _require_spans(prompt)
    return prompt.chat


def _require_spans(prompt: EncodedPrompt) -> None:
    if not prompt.spans:
        raise InvalidRequest(
            "this model's tokenizer cannot tell where its tokens stand in the text",
            "Give positions as integers; tokenize lists them.",
        )


def _find(piece: str, occurrence: int, within: Sequence[Span], where: str, prompt: EncodedPrompt) -> Span:
    """One occurrence of a piece of text, counted through the given parts of the prompt."""
    starts = [first + start for first, last in within for start in _occurrences(piece, prompt.text[first:last])]
    if not -len(starts) <= occurrence < len(starts):
        times = f"{len(starts)} time{'' if len(starts) == 1 else 's'}"
        raise InvalidRequest(
            f"occurrence {occurrence} of {piece!r} does not exist: it stands {times} in {where}prompt {prompt.index}."
        )
    return starts[occurrence], starts[occurrence] + len(piece)


def _tokens_in(parts: Sequence[Span], prompt: EncodedPrompt) -> list[int]:
    return [
        index
        for index, (first, last) in enumerate(prompt.spans)
        if any(first < end and last > start for start, end in parts)
    ]


def _lies_in(span: Span, part: Span) -> bool:
    return part[0] <= span[0] and span[1] <= part[1]


def _occurrences(piece: str, text: str) -> list[int]:
    starts: list[int] = []
    start = text.find(piece)
    while start >= 0:
        starts.append(start)
        start = text.find(piece, start + 1)
    return starts
