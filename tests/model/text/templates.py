"""Chat templates in the styles of several families, each beside the same layout written in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Messages = list[dict[str, str]]
Piece = tuple[str, int | None]
"""Text, and the turn whose content it is, None for what the template writes."""


@dataclass(frozen=True)
class Style:
    """A template and its independent twin.

    Attributes:
        jinja: The template.
        pieces: What it must make of messages.
        system: Whether it takes a system message.
        fits: Whether it writes messages in this layout.
    """

    jinja: str
    pieces: Callable[[Messages], list[Piece]]
    system: bool = True
    fits: Callable[[Messages], bool] = lambda messages: True


def opened(messages: Messages, opening: str) -> list[Piece]:
    return [] if messages[-1]["role"] == "assistant" else [(opening, None)]


def chatml(messages: Messages) -> list[Piece]:
    pieces: list[Piece] = []
    for turn, message in enumerate(messages):
        pieces += [(f"<|im_start|>{message['role']}\n", None), (message["content"], turn), ("<|im_end|>\n", None)]
    return pieces + opened(messages, "<|im_start|>assistant\n")


def llama3(messages: Messages) -> list[Piece]:
    pieces: list[Piece] = [("<|begin_of_text|>", None)]
    for turn, message in enumerate(messages):
        header = f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n"
        pieces += [(header, None), (message["content"].strip(), turn), ("<|eot_id|>", None)]
    return pieces + opened(messages, "<|start_header_id|>assistant<|end_header_id|>\n\n")


def llama2(messages: Messages) -> list[Piece]:
    """The system message stands in the first user message."""
    pieces: list[Piece] = []
    system = messages[0]["role"] == "system"
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            pieces += [(" ", None), (message["content"].strip(), turn), (" </s>", None)]
        elif message["role"] == "user":
            head: list[Piece] = [("<s>[INST] ", None)]
            if system and turn == 1:
                head += [("<<SYS>>\n", None), (messages[0]["content"], 0), ("\n<</SYS>>\n\n", None)]
                content = message["content"].rstrip()
            else:
                content = message["content"].strip()
            pieces += [*head, (content, turn), (" [/INST]", None)]
    return pieces


def mistral(messages: Messages) -> list[Piece]:
    """The system message stands in the last user message."""
    pieces: list[Piece] = [("<s>", None)]
    last = max(turn for turn, message in enumerate(messages) if message["role"] == "user")
    for turn, message in enumerate(messages):
        if message["role"] == "user":
            system: list[Piece] = (
                [(messages[0]["content"], 0), ("\n\n", None)]
                if turn == last and messages[0]["role"] == "system"
                else []
            )
            pieces += [("[INST] ", None), *system, (message["content"], turn), ("[/INST]", None)]
        elif message["role"] == "assistant":
            pieces += [(" ", None), (message["content"], turn), ("</s>", None)]
    return pieces


def gemma(messages: Messages) -> list[Piece]:
    pieces: list[Piece] = [("<bos>", None)]
    for turn, message in enumerate(messages):
        role = "model" if message["role"] == "assistant" else message["role"]
        header = f"<start_of_turn>{role}\n"
        pieces += [(header, None), (message["content"].strip(), turn), ("<end_of_turn>\n", None)]
    return pieces + opened(messages, "<start_of_turn>model\n")


STYLES = {
    "chatml": Style(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        chatml,
    ),
    "llama3": Style(
        "{{ '<|begin_of_text|>' }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        llama3,
    ),
    "llama2": Style(
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = none %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if m['role'] == 'user' %}"
        "{% set body = m['content'] if system is none or not loop.first else "
        "'<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
        "{{ '<s>[INST] ' + body | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] | trim + ' </s>' }}{% endif %}{% endfor %}",
        llama2,
        # After a system message, a blank user message lets the template strip its own text.
        fits=lambda messages: messages[0]["role"] == "user" or bool(messages[1]["content"].strip()),
    ),
    "mistral": Style(
        "{{ '<s>' }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
        "{% set users = rest | selectattr('role', 'equalto', 'user') | list %}"
        "{% for m in rest %}{% if m['role'] == 'user' %}"
        "{{ '[INST] ' + (system if loop.index0 == 2 * (users | length - 1) else '') + m['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}",
        mistral,
    ),
    "gemma": Style(
        "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}"
        "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim "
        "+ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        gemma,
        system=False,
    ),
}
"""Messages alternate between user and assistant, after an optional system message."""
