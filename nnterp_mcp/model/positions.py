"""Which tokens of a prompt a request means. A position always refers to the unpadded prompt."""

from __future__ import annotations

from collections.abc import Sequence

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.fields import PositionSpec, TextPosition
from nnterp_mcp.model.prompts import EncodedPrompt


def resolve_positions(asked: Sequence[PositionSpec], prompt: EncodedPrompt) -> list[int]:
    """Turns positions into sorted token indices of one prompt.

    Args:
        asked: Integers from either end, `last`, `all`, Python-style ranges, or pieces of the prompt's text.
        prompt: The prompt.

    Returns:
        Indices from 0 to `len(prompt.ids) - 1`, in ascending order, each once.

    Raises:
        InvalidRequest: A position does not exist in the prompt.
    """
    return sorted({index for spec in asked for index in _resolve(spec, prompt)})


def _resolve(spec: PositionSpec, prompt: EncodedPrompt) -> list[int]:
    length = len(prompt.ids)
    where = f"prompt {prompt.index} has positions 0 to {length - 1}"
    if isinstance(spec, TextPosition):
        return _tokens_of_text(spec, prompt)
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
    if not prompt.spans:
        raise InvalidRequest(
            "this model's tokenizer cannot tell where its tokens stand in the text",
            "Give positions as integers; tokenize lists them.",
        )
    starts = _occurrences(spec.text, prompt.text)
    if not -len(starts) <= spec.occurrence < len(starts):
        times = f"{len(starts)} time{'' if len(starts) == 1 else 's'}"
        raise InvalidRequest(
            f"occurrence {spec.occurrence} of {spec.text!r} does not exist: it stands {times} in prompt {prompt.index}."
        )
    start = starts[spec.occurrence]
    end = start + len(spec.text)
    return [index for index, (first, last) in enumerate(prompt.spans) if first < end and last > start]


def _occurrences(piece: str, text: str) -> list[int]:
    starts: list[int] = []
    start = text.find(piece)
    while start >= 0:
        starts.append(start)
        start = text.find(piece, start + 1)
    return starts
