"""Target prompts of a patchscope: the text that a state is patched into, and the token that it replaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.text.chats import render_chat
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts

REPEATED = ("king", "1135", "hello")
"""The words of the patchscopes paper's prompt for next-token prediction."""

_INSTRUCTION = "Continue the pattern. Answer with the next word only."


@dataclass(frozen=True)
class Target:
    """A prompt and the token whose state is replaced.

    Attributes:
        ids: The prompt's tokens, without padding.
        position: The token, counted from 0.
        index: The prompt's index in the request, by which operations choose prompts.
    """

    ids: tuple[int, ...]
    position: int
    index: int = 0

    def base(self, plan: Plan = NOTHING) -> Input:
        """The prompt as the input of branches.

        Args:
            plan: The operations on it.
        """
        return Input(EncodedPrompt(self.index, "", list(self.ids), []), plan=plan)


@dataclass
class TargetPrompt:
    """A text, and which of its tokens is replaced.

    Attributes:
        prompt: The text.
        index_to_patch: The token, counted from either end of the unpadded prompt, special tokens included.
    """

    prompt: str
    index_to_patch: int


def repeat_prompt(
    words: Sequence[str] | None = None,
    rel: str = " ",
    sep: str = "\n",
    placeholder: str = "?",
    index_to_patch: int = -1,
) -> TargetPrompt:
    """A prompt that says words twice and ends in a placeholder: a model that follows it repeats what is put there.

    Args:
        words: The words; those of the paper by default.
        rel: Between a word and its repetition.
        sep: Between pairs.
        placeholder: What stands where the state is put; a single token in most vocabularies.
        index_to_patch: The token to replace.

    Source: Ghandeharioun et al., "Patchscopes: A Unifying Framework for Inspecting Hidden Representations of Language
    Models" (2024), section 4.1.
    """
    pairs = [f"{word}{rel}{word}" for word in (REPEATED if words is None else words)]
    return TargetPrompt(sep.join([*pairs, placeholder]), index_to_patch)


def it_repeat_prompt(
    tokenizer: Any,
    words: Sequence[str] | None = None,
    rel: str = " ",
    sep: str = "\n",
    placeholder: str = "?",
    complete_prompt: bool = True,
    add_user_instr: bool = True,
    use_system_prompt: bool = True,
) -> TargetPrompt:
    """The repeat prompt as a chat, for models that were tuned on one.

    Args:
        tokenizer: The model's tokenizer, for its chat template.
        words: The words; those of the paper by default.
        rel: Between a word and its repetition.
        sep: Between pairs.
        placeholder: What stands where the state is put.
        complete_prompt: Let the assistant begin its answer with the prompt, so that the placeholder is the last
            token; otherwise the last token is that which opens the assistant's turn.
        add_user_instr: Give the instruction in a turn of its own, which the assistant accepts.
        use_system_prompt: Begin with a system turn; some templates refuse one.

    Raises:
        Unsupported: The tokenizer has no chat template.
        InvalidRequest: The template refuses these turns.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise Unsupported("this model has no chat template", "Use repeat_prompt, which is plain text.")
    text = repeat_prompt(words, rel, sep, placeholder).prompt
    chat = _turns(text, add_user_instr, use_system_prompt)
    if complete_prompt:
        chat.append({"role": "assistant", "content": text})
    try:
        prompt = render_chat(tokenizer, chat, "this model").text
    except InvalidRequest as error:
        raise InvalidRequest(f"{error.message} (the repeat prompt)", "Try use_system_prompt=False.") from error
    return TargetPrompt(prompt, -1)


def _turns(text: str, instructed: bool, system: bool) -> list[dict[str, str]]:
    """The turns before the assistant's answer."""
    if instructed:
        opening = [{"role": "system", "content": "You complete patterns."}] if system else []
        return [
            *opening,
            {"role": "user", "content": _INSTRUCTION},
            {"role": "assistant", "content": "Understood."},
            {"role": "user", "content": text},
        ]
    if system:
        return [{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": text}]
    return [{"role": "user", "content": f"{_INSTRUCTION}\n{text}"}]


def encode_target(
    tokenizer: Any,
    prompt: str | Sequence[Any],
    name: str,
    limit: int | None = None,
    embedded: int | None = None,
) -> EncodedPrompt:
    """Tokenizes a target prompt.

    Args:
        tokenizer: The model's tokenizer.
        prompt: A text, or the turns of a chat.
        name: The model's name, for errors.
        limit: The longest prompt allowed, in tokens.
        embedded: How many token ids the model embeds, if that is to be looked at.

    Raises:
        InvalidRequest: It has no tokens, too many, or one that the model does not embed.
    """
    (encoded,) = encode_prompts(tokenizer, [prompt], name, limit, embedded)
    return encoded


def resolve_target(ids: Sequence[int], position: int) -> Target:
    """A target from tokens and a position that counts from either end.

    Raises:
        InvalidRequest: The position does not exist.
    """
    if not -len(ids) <= position < len(ids):
        raise InvalidRequest(
            f"position {position} does not exist: the target prompt has positions 0 to {len(ids) - 1}."
        )
    return Target(tuple(ids), position % len(ids))
