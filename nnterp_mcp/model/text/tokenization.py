"""From prompts to token ids, and from token ids to batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.text.chats import Chat, render_chat
from nnterp_mcp.model.text.tokens import bare_ids, encode, span_text
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.prompts import Message, Prompt
from nnterp_mcp.request.remarks import remark


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model reads it, without padding.

    Attributes:
        index: Its place in the request.
        text: The text that was encoded, the chat template applied.
        ids: Its token ids, special tokens included.
        spans: The characters of each token in the text; empty for tokenizers without offsets.
        chat: Its turns; None for plain text.
    """

    index: int
    text: str
    ids: list[int]
    spans: list[tuple[int, int]]
    chat: Chat | None = None


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the left to one length.

    Attributes:
        prompts: The prompts, in the order of the rows.
        inputs: `input_ids` and `attention_mask`, each (row, token).
        padding: Padded tokens before each prompt.
    """

    prompts: list[EncodedPrompt]
    inputs: dict[str, Int[Tensor, "row token"]]
    padding: list[int]


def encode_prompts(
    tokenizer: Any,
    prompts: Sequence[str | Sequence[Any]],
    name: str,
    limit: int | None = None,
    embedded: int | None = None,
) -> list[EncodedPrompt]:
    """Tokenizes prompts one by one.

    Text gets the special tokens with which the tokenizer begins it, unless it begins with them itself, and none at
    its end, so that its last token is the last one. A chat (messages with `role` and `content`) goes through the chat
    template, which writes its own. It ends with the opening of the assistant's turn, or with what the assistant said
    last, to be continued.

    Args:
        tokenizer: The model's tokenizer.
        prompts: Texts or chats.
        name: The model's name, for errors.
        limit: The longest prompt allowed, in tokens.
        embedded: Number of token ids that the model embeds; unchecked if left out.

    Raises:
        InvalidRequest: A prompt has no tokens or too many, or one that the model does not embed, or a chat is given to
            a model without a chat template.
    """
    ends = _Ends.of(tokenizer)
    encoded = [_encode(tokenizer, index, prompt, name, limit, ends) for index, prompt in enumerate(prompts)]
    if embedded is not None:
        for prompt in encoded:
            _require_embedded(prompt, embedded, tokenizer, name)
    ends.tell(tokenizer)
    return encoded


def _require_embedded(prompt: EncodedPrompt, embedded: int, tokenizer: Any, name: str) -> None:
    largest = max(prompt.ids)
    if largest >= embedded:
        raise InvalidRequest(
            f"prompt {prompt.index} holds {shown(tokenizer.convert_ids_to_tokens(largest))}, token {largest} of the "
            f"tokenizer, and {name} embeds tokens 0 to {embedded - 1}",
            "Leave it out, or load the model with the tokenizer that belongs to its weights.",
        )


@dataclass
class _Ends:
    """The special tokens that a tokenizer adds to every text, and counts of those that were removed.

    Attributes:
        begin: The tokens before a text.
        end: The tokens after it.
        begun: Texts that already began with them.
        ended: Texts whose closing tokens were removed.
    """

    begin: list[int]
    end: list[int]
    begun: int = 0
    ended: int = 0

    @classmethod
    def of(cls, tokenizer: Any) -> _Ends:
        """Those of a tokenizer, seen around a short text."""
        whole, bare = encode(tokenizer, "a")["input_ids"], bare_ids(tokenizer, "a")
        for start in range(len(whole) - len(bare) + 1) if bare else ():
            if whole[start : start + len(bare)] == bare:
                return cls(list(whole[:start]), list(whole[start + len(bare) :]))
        return cls([], [])

    def cut(self, ids: Sequence[int]) -> slice:
        """The tokens of a text that are read."""
        first, last, count = 0, len(ids), len(self.begin)
        if self.begin and ids[: 2 * count] == self.begin * 2:
            first, self.begun = count, self.begun + 1
        if self.end and ids[last - len(self.end) :] == self.end:
            last, self.ended = last - len(self.end), self.ended + 1
        return slice(first, last)

    def tell(self, tokenizer: Any) -> None:
        """Adds remarks on what was removed."""
        if self.begun:
            texts = f"{self.begun} prompts begin" if self.begun > 1 else "A prompt begins"
            remark(f"{texts} with {span_text(tokenizer, self.begin)} already: it was not put before the text again.")
        if self.ended:
            remark(
                f"The tokenizer's {span_text(tokenizer, self.end)} after every text was left out: the last token is "
                "the text's."
            )


def _encode(
    tokenizer: Any, index: int, prompt: str | Sequence[Any], name: str, limit: int | None, ends: _Ends
) -> EncodedPrompt:
    check_cancelled()
    if isinstance(prompt, str):
        chat, text = None, prompt
    else:
        chat = render_chat(tokenizer, prompt, name)
        text = chat.text
    encoding = encode(tokenizer, text, add_special_tokens=chat is None, return_offsets_mapping=tokenizer.is_fast)
    ids: list[int] = list(encoding["input_ids"])
    read = ends.cut(ids) if chat is None else slice(None)
    ids = ids[read]
    if not ids:
        raise InvalidRequest(f"prompt {index} has no tokens for {name}: {text!r}", "Give at least one token of text.")
    if limit is not None and len(ids) > limit:
        raise InvalidRequest(f"prompt {index} has {len(ids)} tokens: {name} reads at most {limit} here.", "Shorten it.")
    offsets = encoding["offset_mapping"][read] if tokenizer.is_fast else ()
    return EncodedPrompt(index, text, ids, [(int(start), int(end)) for start, end in offsets], chat)


def as_chats(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts as chats: a text becomes the user's message."""
    return [[Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt for prompt in prompts]


def group_by_length(
    lengths: Sequence[int],
    batch_tokens: int,
    *,
    pad: bool = True,
    batch_size: int | None = None,
    share: Callable[[int, int], bool] = lambda length, other: True,
) -> list[list[int]]:
    """Groups prompts of similar length into batches of at most `batch_tokens` padded tokens, the longest first.

    Args:
        lengths: The tokens of each prompt.
        batch_tokens: Tokens in a batch, padding included; a longer prompt runs alone.
        pad: False to batch only prompts of equal length (for models whose padded rows differ).
        batch_size: Prompts in a batch, at most; no bound by default.
        share: Returns True if prompts of two lengths may share a batch.

    Returns:
        The indices of the prompts of each batch.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        longest = lengths[batches[-1][0]] if batches else 0
        count = len(batches[-1]) + 1 if batches else 0
        fits = batches and longest * count <= batch_tokens and (batch_size is None or count <= batch_size)
        if fits and (pad or lengths[number] == longest) and share(lengths[number], longest):
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def pad_batch(prompts: Sequence[EncodedPrompt], pad_id: int, device: torch.device, width: int | None = None) -> Batch:
    """Pads prompts on the left to one length.

    Args:
        pad_id: The id to pad with; masked out.
        device: Where the tensors go.
        width: That length; by default that of the longest.
    """
    width = width or max(len(prompt.ids) for prompt in prompts)
    padding = [width - len(prompt.ids) for prompt in prompts]
    ids = [[pad_id] * missing + prompt.ids for missing, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * missing + [1] * len(prompt.ids) for missing, prompt in zip(padding, prompts, strict=True)]
    inputs = {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
    return Batch(list(prompts), inputs, padding)
