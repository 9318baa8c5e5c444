"""The tokens of a text, unique names of tokens, and the token that pads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.errors import InvalidRequest, is_panic
from nnterp_mcp.request.arguments import shown

_UNREADABLE = "\ufffd"
"""The replacement character of decoders for invalid UTF-8."""

_SPACE = "▁"
"""The space of SentencePiece, which decoding one piece alone drops."""

_BEFORE = ("\n", "🍐", ".", "a")
"""Prefixes for tokenizing a text in context: the first that does not merge with it is used."""

_NAMES: WeakKeyDictionary[Any, _Names] = WeakKeyDictionary()


def token_text(tokenizer: Any, token: int) -> str:
    """The name of a token, unique in its vocabulary.

    It is the token's text, leading space included. Bytes that are no UTF-8 by themselves are written as `<0xE8>`;
    a text that several tokens have is followed by the id (`the#8083`), which stands alone where there is no text.
    """
    check_cancelled()
    return _names_of(tokenizer).of(token)


def token_texts(tokenizer: Any, count: int) -> list[str]:
    """The names of the first so many tokens, in the time of one pass over the vocabulary."""
    names = _names_of(tokenizer)
    return [names.of(token) for token in range(count)]


def _names_of(tokenizer: Any) -> _Names:
    names = _NAMES.get(tokenizer)
    if names is None or names.size != len(tokenizer):
        names = _NAMES[tokenizer] = _Names(tokenizer)
    return names


class _Names:
    """The names of one tokenizer's tokens.

    Attributes:
        size: How many tokens there were when the texts were counted.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.size = len(tokenizer)
        self._piece_of = tokenizer.convert_ids_to_tokens
        self._texts = _texts(tokenizer)
        self._bytes = {token for token in _byte_pieces(tokenizer) if token < len(self._texts)}
        self._times = Counter(self._texts)
        self._times.subtract(self._texts[token] for token in self._bytes)  # they give way to the text's own token
        self._known: dict[int, str] = {}

    def of(self, token: int) -> str:
        """The name of a token."""
        if token not in self._known:
            self._known[token] = self._name(token)
        return self._known[token]

    def _name(self, token: int) -> str:
        piece, text = (self._piece_of(token), self._texts[token]) if token < len(self._texts) else (None, "")
        if piece is None or not text:
            return _by_id(token)
        if token in self._bytes:
            return piece if _UNREADABLE in text or self._times[text] else text
        if _UNREADABLE in text and _UNREADABLE not in piece:
            return _with_bytes(token, piece)
        return f"{text}{_by_id(token)}" if self._times[text] > 1 else text


def _texts(tokenizer: Any) -> list[str]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    count = len(tokenizer)
    if backend is None:
        texts = [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in range(count)]
    else:
        texts = backend.decode_batch([[token] for token in range(count)], skip_special_tokens=False)
        if backend.decoder is None or _SPACE.encode() not in backend.decoder.__getstate__():
            return texts
    pieces = {token: piece for piece, token in tokenizer.get_vocab().items()}
    return [
        f" {text}" if pieces.get(token, "").startswith(_SPACE) and not text.startswith(" ") else text
        for token, text in enumerate(texts)
    ]


def _byte_pieces(tokenizer: Any) -> set[int]:
    """The single-byte tokens of vocabularies with byte fallback."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    found = zip(pieces, tokenizer.convert_tokens_to_ids(pieces), strict=True)
    return {token for piece, token in found if token is not None and tokenizer.convert_ids_to_tokens(token) == piece}


def _with_bytes(token: int, piece: str) -> str:
    """The text of a byte-level piece, with bytes that are no valid UTF-8 as `<0xE8>`."""
    bytes_of = _byte_level()
    if any(char not in bytes_of for char in piece):
        return _by_id(token)
    text = bytes(bytes_of[char] for char in piece).decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(char) - 0xDC00:02X}>" if "\udc80" <= char <= "\udcff" else char for char in text)


def _by_id(token: int) -> str:
    return f"#{token}"


@cache
def _byte_level() -> dict[str, int]:
    """The byte of each character in GPT-2's byte-level pieces."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def inner_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text in the middle of another text, without a prefix space.

    Many tokenizers add a space before every text, so that a text alone gets other tokens.
    """
    ids = bare_ids(tokenizer, text)
    first = bare_ids(tokenizer, "a")[:1]
    if not first or not token_text(tokenizer, first[0]).startswith(" "):
        return ids
    for before in _BEFORE:
        ahead, whole = bare_ids(tokenizer, before), bare_ids(tokenizer, before + text)
        if ahead and whole[: len(ahead)] == ahead:
            return whole[len(ahead) :]
    return ids


def bare_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text without the special ones that a tokenizer adds."""
    return encode(tokenizer, text, add_special_tokens=False)["input_ids"]


def encode(tokenizer: Any, text: str, **options: Any) -> Any:
    """Calls a tokenizer.

    Raises:
        InvalidRequest: It cannot read the text, such as half of a surrogate pair.
    """
    try:
        return tokenizer(text, verbose=False, **options)
    except BaseException as error:
        if not (isinstance(error, TypeError | UnicodeError) or is_panic(error)):
            raise
        raise InvalidRequest(
            f"the tokenizer cannot read {shown(text)} ({type(error).__name__})", "Leave out its unusual characters."
        ) from None


def span_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Some tokens in a row as text; a single one by its name."""
    if len(tokens) == 1:
        return token_text(tokenizer, tokens[0])
    text = str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
    piece = tokenizer.convert_ids_to_tokens(tokens[0]) if tokens else None
    return f" {text}" if str(piece).startswith(_SPACE) and not text.startswith(" ") else text


def embedded_ids(model: nn.Module) -> int | None:
    """The number of token ids that a model embeds; None where it has no embedding table."""
    weight = getattr(model.get_input_embeddings(), "weight", None)  # pyright: ignore[reportCallIssue]
    return None if weight is None else int(weight.shape[0])


def fill_padding(tokenizer: Any, embedded: int | None) -> None:
    """Gives a tokenizer a padding token that the model embeds, where its own is missing or is not embedded.

    Args:
        tokenizer: The tokenizer; it is changed.
        embedded: How many token ids the model embeds, if that is known.
    """
    most = len(tokenizer) if embedded is None else embedded
    if tokenizer.pad_token_id is not None and 0 <= tokenizer.pad_token_id < most:
        return
    others = [tokenizer.eos_token, *map(tokenizer.convert_ids_to_tokens, range(min(most, len(tokenizer))))]
    ids = [(tokenizer.convert_tokens_to_ids(token), token) for token in others if token is not None]
    tokenizer.pad_token = next((token for index, token in ids if index is not None and 0 <= index < most), None)
