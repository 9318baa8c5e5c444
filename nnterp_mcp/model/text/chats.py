"""Chats: messages rendered by a model's chat template, and the position of each message's content in the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.prompts import Message

_PRIVATE_USE = range(0xE000, 0xF900)
"""Characters to which Unicode gives no meaning, so that templates have no reason to treat them specially."""

Span = tuple[int, int]
"""Characters of a text, from the first to before the last."""


@dataclass(frozen=True)
class Chat:
    """A chat as a model reads it.

    Attributes:
        messages: Role and content of each turn.
        text: What the chat template makes of them, as far as the model reads it.
        render: The template.
        rest: The template's text after a last turn that is to be continued.
    """

    messages: tuple[dict[str, Any], ...]
    text: str
    render: Callable[[Sequence[dict[str, Any]]], str] = field(repr=False, compare=False)
    rest: str = ""

    def content_span(self, turn: int) -> Span | None:
        """The characters of a turn's content in the text, stripped if the template strips it.

        Found by rendering the chat with a marker in the content's place, so that equal contents, and contents that look
        like the template, are distinguished.

        Returns:
            The span; None where the template omits the content, repeats it or changes it.
        """
        content, text = self.messages[turn]["content"], self.text + self.rest
        mark = self.unused_character()
        marked = [
            message | {"content": mark} if index == turn else message for index, message in enumerate(self.messages)
        ]
        try:
            before, found, after = self.render(marked).partition(mark)
        except Exception:
            return None
        end = len(text) - len(after)
        if not found or mark in after or end < len(before):
            return None
        same_around = text.startswith(before) and text.endswith(after)
        known = (content, content.strip(), content.lstrip(), content.rstrip()) if isinstance(content, str) else ()
        return (len(before), end) if same_around and text[len(before) : end] in known else None

    def unused_character(self) -> str:
        """A character that does not occur in the chat."""
        contents = [self.text, self.rest, *(str(message["content"]) for message in self.messages)]
        return next(mark for mark in map(chr, _PRIVATE_USE) if not any(mark in text for text in contents))


def render_chat(tokenizer: Any, messages: Sequence[Any], name: str) -> Chat:
    """Puts messages through a tokenizer's chat template.

    The text ends with the opening of the assistant's turn. Where the assistant spoke last, it ends with its last
    words, for the model to continue them, unless that message is marked as closed.

    Args:
        tokenizer: The model's tokenizer.
        messages: Messages, or mappings with their fields.
        name: The model's name, for errors.

    Raises:
        InvalidRequest: There is no template, or it refuses the messages, or does not show where the last one ends.
    """
    template = _template(tokenizer, name)
    said = [_message(message) for message in messages]
    turns = tuple({"role": message.role, "content": message.content} for message in said)

    def render(turns: Sequence[dict[str, Any]]) -> str:
        opened = turns[-1]["role"] != "assistant"
        return str(
            tokenizer.apply_chat_template(
                list(turns), chat_template=template, tokenize=False, add_generation_prompt=opened
            )
        )

    try:
        chat = Chat(turns, render(turns), render)
    except Exception as error:  # whatever the template raises
        raise InvalidRequest(f"the chat template of {name} refuses these messages: {shown(str(error), 300)}") from error
    return chat if said[-1].closed or said[-1].role != "assistant" else _opened(chat, name)


def _template(tokenizer: Any, name: str) -> str | None:
    given = tokenizer.chat_template
    if not given:
        raise InvalidRequest(f"{name} has no chat template, so a prompt must be text", "Give the prompt as a string.")
    if isinstance(given, str) or "default" in given:
        return None
    if len(given) > 1:
        raise InvalidRequest(
            f"{name} has several chat templates ({', '.join(map(shown, given))}) and none of them is its default, so a "
            "prompt must be text",
            "Give the prompt as a string, in the layout that the model was trained on.",
        )
    return next(iter(given.values()))


def _message(given: Any) -> Message:
    if isinstance(given, Message):
        return given
    fields = {name: given[name] for name in Message.model_fields if name in given}
    try:
        return Message.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequest(f"{shown(given)} is no message: {error.errors()[0]['msg']}.") from None


def _opened(chat: Chat, name: str) -> Chat:
    """A chat cut off after its last content, for the model to continue."""
    *earlier, last = chat.messages
    mark = chat.unused_character()
    try:
        before = chat.render([*earlier, last | {"content": last["content"] + mark}]).rpartition(mark)[0]
    except Exception:  # whatever the template raises
        before = ""
    end = next((len(ending) for ending in (before, before.rstrip()) if chat.text.startswith(ending)), 0)
    if not end:
        raise InvalidRequest(
            f"the chat template of {name} does not write the assistant's last message once and to its end, so the "
            "model cannot continue it",
            'Close the message with "closed": true, or end with a message of the user.',
        )
    return replace(chat, text=chat.text[:end], rest=chat.text[end:])
