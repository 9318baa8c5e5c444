"""Small tokenizers of other kinds than the byte-level one, made in memory."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["▁", "P", "a", "r", "i", "s", "▁P", "ar", "is", "aris", "Paris", "▁Paris", "5", ".", "▁a", "▁P", "the", "🍐"]


def sentencepiece_like(words: list[str] | None = None) -> Any:
    """Puts a space before every text, writes it as `▁`, and falls back on bytes, as Llama 2's does."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(words or WORDS)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [("a", "r"), ("i", "s"), ("ar", "is"), ("P", "aris"), ("▁", "Paris"), ("▁", "P"), ("▁", "a")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def wordpiece() -> Any:
    """Drops spaces, as BERT's does, and ends every text with a token of its own."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "paris", "##is", "par", "a", "5", "!"]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
