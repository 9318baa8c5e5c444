"""Lengths at which a model's computation changes: windows, chunks, index sizes, switches of position encoding.

A check on a few tokens says nothing about what lies beyond them, and a batch is right only where its rows are computed
alike: some position encodings take their frequencies from the longest row, for all rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from nnterp_mcp.model.memory import free

_CHANGES = re.compile(r".*(window|chunk|block_size|index_topk|budget|floor|local_attention|original_max_pos).*")
_NO_LENGTH = re.compile(r"max_window_layers|chunk_size_(feed_forward|lm_head)|.*(_pattern|_before|_after|vision.*)")
_SELECTING = re.compile(r"index_topk|index_topk_blocks|indexer_budget|keep_window_size")
"""Fields that say how many keys a query attends to, chosen by scores."""

_AFFORDABLE = {"cpu": 5e11}
"""Floating-point operations that a check may take on a device."""
_AFFORDABLE_ELSEWHERE = 5e13


@dataclass(frozen=True)
class Mark:
    """A length beyond which a model's computation changes.

    Attributes:
        name: The field of its configuration.
        length: The longest text that is computed as shorter ones are.
    """

    name: str
    length: int

    def __str__(self) -> str:
        return f"{self.name} {self.length}"


@dataclass(frozen=True)
class Lengths:
    """The lengths in a model's configuration at which its computation changes.

    Attributes:
        marks: Each length beyond which something changes, in ascending order.
        switches: Lengths beyond which every position of a text is encoded otherwise.
        own: The length beyond which every length is computed differently, because position encodings are scaled by it
            or keys are selected; None where there is none.
        selecting: The length beyond which queries attend to the keys with the best scores only: rounding, which differs
            between batches, decides between close ones. None where they attend to all.
    """

    marks: tuple[Mark, ...] = ()
    switches: tuple[int, ...] = ()
    own: int | None = None
    selecting: int | None = None

    def kind(self, length: int) -> tuple[int, ...]:
        """Equal for lengths at which a token at the same position is computed alike."""
        own = length if self.own is not None and length > self.own else 0
        return (*(int(length > switch) for switch in self.switches), own)

    def share(self, length: int, other: int, new_tokens: int = 0) -> bool:
        """True if prompts of two lengths may share a batch, with so many new tokens to follow."""
        end = max(length, other) + new_tokens
        if self.selecting is not None and end > self.selecting:
            return False
        return length == other or self.kind(min(length, other)) == self.kind(end)

    def below(self, length: int) -> list[Mark]:
        """The marks that a text of this length goes beyond, each length once."""
        return list({mark.length: mark for mark in self.marks if mark.length < length}.values())


def lengths_of(module: nn.Module) -> Lengths:
    """Reads these lengths from the configuration of a Hugging Face model."""
    config: Any = module.config
    text = config.get_text_config(decoder=True)
    fields = {**vars(config), **vars(text)}
    ropes = list(_ropes([fields.get("rope_parameters"), fields.get("rope_scaling")]))
    kinds = [str(rope.get("rope_type", rope.get("type"))) for rope in ropes]
    originals = [_original(rope, fields) for rope in ropes]
    switches = {at for at, kind in zip(originals, kinds, strict=True) if at and kind in ("longrope", "su")}
    scaled = {at for at, kind in zip(originals, kinds, strict=True) if at and "dynamic" in kind}
    if scaled and isinstance(bound := fields.get("max_position_embeddings"), int):
        scaled.add(bound)
    selecting = {size for name, size in _sizes(fields) if _SELECTING.fullmatch(name)}
    marks = {Mark(name, size) for name, size in (*_sizes(fields), *_of_ropes(ropes))}
    marks |= {Mark(f"{kind} RoPE", at) for at, kind in zip(originals, kinds, strict=True) if at in switches | scaled}
    return Lengths(
        tuple(sorted(marks, key=lambda mark: (mark.length, mark.name))),
        tuple(sorted(switches)),
        min(scaled | selecting, default=None),
        min(selecting, default=None),
    )


def _sizes(fields: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in fields.items():
        if not _CHANGES.fullmatch(name) or _NO_LENGTH.fullmatch(name):
            continue
        sizes = value if isinstance(value, list | tuple) else [value]
        unit = fields.get(name.replace("topk_blocks", "block_size"), 1) if name.endswith("topk_blocks") else 1
        for size in sizes:
            if isinstance(size, int) and not isinstance(size, bool) and size > 1:
                yield name, size * unit


def _ropes(values: Any) -> Iterator[Mapping[str, Any]]:
    for value in values:
        if isinstance(value, Mapping):
            if "rope_type" in value or "type" in value:
                yield value
            else:
                yield from _ropes(value.values())


def _of_ropes(ropes: list[Mapping[str, Any]]) -> Iterator[tuple[str, int]]:
    """Lengths beyond which attention is scaled by the position, which comes with the parameters of the encoding."""
    for rope in ropes:
        if "llama_4_scaling_beta" in rope and isinstance(at := rope.get("original_max_position_embeddings"), int):
            yield "llama_4_scaling_beta", at


def _original(rope: Mapping[str, Any], fields: Mapping[str, Any]) -> int | None:
    found = [rope.get("original_max_position_embeddings"), fields.get("original_max_position_embeddings")]
    found.append(fields.get("max_position_embeddings"))
    return next((at for at in found if isinstance(at, int) and at > 0), None)


def stretch_of(module: nn.Module) -> float:
    """The factor by which dynamic position encodings extend the configured context length."""
    text: Any = module.config.get_text_config(decoder=True)  # pyright: ignore
    fields = vars(text)
    factors = [
        float(rope.get("factor", 1))
        for rope in _ropes([fields.get("rope_parameters"), fields.get("rope_scaling")])
        if "dynamic" in str(rope.get("rope_type", rope.get("type")))
    ]
    return max([1.0, *factors])


def is_affordable(module: nn.Module, tokens: int) -> bool:
    """True if running so many tokens through a model takes seconds at most and fits the memory."""
    embedding: nn.Module = module.get_input_embeddings()  # pyright: ignore[reportCallIssue, reportAssignmentType]
    looked_up = {id(parameter) for parameter in embedding.parameters()}
    weights = [parameter for parameter in module.parameters() if id(parameter) not in looked_up]
    device = next(module.parameters()).device
    operations = 2 * tokens * sum(weight.numel() for weight in weights)
    if operations > _AFFORDABLE.get(device.type, _AFFORDABLE_ELSEWHERE):
        return False
    width = max((weight.shape[-1] for weight in weights if weight.ndim), default=1)
    return 64 * tokens * width + 16 * tokens**2 < free(device) / 2


def table_length(module: nn.Module, embedding: nn.Module) -> int | None:
    """Number of positions in a learned position table next to the token embedding; None without such a table."""
    parent = next((part for part in module.modules() if embedding in part.children()), None)
    tables = [
        part
        for name, part in (() if parent is None else parent.named_children())
        if re.search(r"(^|_)(wpe|pos|positions?|position_embeddings?)($|_)", name) and isinstance(part, nn.Embedding)
    ]
    held = [table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1) for table in tables]
    return min(held, default=None)


def forget_longest(module: nn.Module) -> None:
    """Resets dynamic rotary frequencies before every forward pass.

    A dynamic rotary encoding keeps those of the longest text so far, and reads shorter ones with them: what a prompt
    gives would depend on what was read before it.
    """
    for part in module.modules():
        dynamic = any("dynamic" in kind for kind in _rope_types(part).values())
        if dynamic and hasattr(part, "original_max_seq_len") and _reset not in part._forward_pre_hooks.values():  # pyright: ignore[reportPrivateUsage]
            part.register_forward_pre_hook(_reset)


def _rope_types(rotary: nn.Module) -> dict[str, str]:
    kinds: Any = getattr(rotary, "rope_type", None)
    if isinstance(kinds, Mapping):
        return {f"{layer}_": str(kind) for layer, kind in kinds.items()}
    return {"": str(kinds)}


def _reset(rotary: nn.Module, args: Any) -> None:
    first: Any = rotary.original_max_seq_len
    for prefix, kind in _rope_types(rotary).items():
        longest = f"{prefix}max_seq_len_cached"
        if "dynamic" in kind and getattr(rotary, longest, first) != first:
            setattr(rotary, longest, first)
            current: Any = getattr(rotary, f"{prefix}inv_freq")
            original: Any = getattr(rotary, f"{prefix}original_inv_freq")
            setattr(rotary, f"{prefix}inv_freq", original.to(current.device))
