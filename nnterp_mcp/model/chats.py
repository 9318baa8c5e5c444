"""Chats: the text that a model's template makes of messages, and where each message's content stands in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnterp_mcp.errors import InvalidRequest

_PRIVATE_USE = range(0xE000, 0xF900)
"""Characters to which Unicode gives no meaning, so that templates have no reason to treat them specially."""

Span = tuple[int, int]
"""Characters of a text, from the first to before the last."""


@dataclass(frozen=True)
class Chat:
    """A chat as a model reads it.

    Attributes:
        messages: Role and content of each turn.
        text: What the chat template makes of them.
        render: The template.
    """

    messages: tuple[dict[str, Any], ...]
    text: str
    render: Callable[[Sequence[dict[str, Any]]], str] = field(repr=False, compare=False)

    def content_span(self, turn: int) -> Span | None:
        """Where the content of a turn stands in the text, stripped if the template strips it.

        It is what changes when one character takes the content's place, so equal contents, and contents that look
        like the template, are told apart.

        Returns:
            The characters; None where the template leaves the content out, repeats it or writes something else.
        """
        content = self.messages[turn]["content"]
        mark = self._unused_character()
        marked = [
            message | {"content": mark} if index == turn else message for index, message in enumerate(self.messages)
        ]
        try:
            before, found, after = self.render(marked).partition(mark)
        except Exception:
            return None
        end = len(self.text) - len(after)
        if not found or mark in after or end < len(before):
            return None
        same_around = self.text.startswith(before) and self.text.endswith(after)
        known = (content, content.strip(), content.lstrip(), content.rstrip()) if isinstance(content, str) else ()
        return (len(before), end) if same_around and self.text[len(before) : end] in known else None

    def _unused_character(self) -> str:
        contents = [self.text, *(str(message["content"]) for message in self.messages)]
        return next(mark for mark in map(chr, _PRIVATE_USE) if not any(mark in text for text in contents))


def render_chat(tokenizer: Any, messages: Sequence[Any], name: str) -> Chat:
    """Puts messages through a tokenizer's chat template.

    The text ends with the opening of the assistant's turn unless the assistant spoke last.

    Args:
        tokenizer: The model's tokenizer.
        messages: Mappings or objects with `role` and `content`.
        name: The model's name, for errors.

    Raises:
        InvalidRequest: There is no template, or it refuses the messages.
    """
    if not tokenizer.chat_template:
        raise InvalidRequest(f"{name} has no chat template, so a prompt must be text", "Give the prompt as a string.")
    turns = [
        {"role": turn["role"], "content": turn["content"]}
        if isinstance(turn, dict)
        else {"role": turn.role, "content": turn.content}
        for turn in messages
    ]

    def render(turns: Sequence[dict[str, Any]]) -> str:
        opened = turns[-1]["role"] != "assistant"
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=opened))

    try:
        return Chat(tuple(turns), render(turns), render)
    except Exception as error:
        raise InvalidRequest(f"the chat template of {name} refuses these messages: {error}") from error
