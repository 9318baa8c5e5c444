"""A model and a tokenizer as people give them to the library: by name, by folder, or in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nnterp_mcp.errors import InvalidRequest


def load_both(
    model: str | Path | nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    trust_remote_code: bool,
    options: dict[str, Any],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, read from where they are if they are not in memory yet.

    Args:
        model: A Hub id, a folder, or the model itself.
        tokenizer: The tokenizer, if it is in memory.
        trust_remote_code: Run modelling code that comes with the weights.
        options: Passed to `from_pretrained`; `device_map` is "auto" by default.

    Raises:
        InvalidRequest: A model that came from nowhere came without its tokenizer.
    """
    source = str(getattr(model, "name_or_path", "")) if isinstance(model, nn.Module) else str(model)
    if not isinstance(model, nn.Module):
        model = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=trust_remote_code, **{"device_map": "auto", **options}
        )
    if tokenizer is None:
        if not source:
            raise InvalidRequest(f"a {type(model).__name__} in memory came without a tokenizer: pass tokenizer=.")
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    return cast("PreTrainedModel", model).eval(), cast("PreTrainedTokenizerBase", tokenizer)
