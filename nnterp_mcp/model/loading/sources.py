"""Where a model that the library wraps comes from: memory, or any name that `locate` knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.loading.build_limits import built_within
from nnterp_mcp.model.loading.finite_weights import require_finite_weights
from nnterp_mcp.model.loading.former_checks import FormerChecks
from nnterp_mcp.model.loading.load import read_config
from nnterp_mcp.model.loading.locate import convert_once, locate
from nnterp_mcp.model.text.tokens import embedded_ids, fill_padding
from nnterp_mcp.settings import Settings


def load_both(
    model: str | Path | nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    trust_remote_code: bool,
    options: dict[str, Any],
    tokenizer_options: Mapping[str, Any],
    former: FormerChecks | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, FormerChecks | None]:
    """A model and its tokenizer, read from where they are if they are not in memory yet.

    Args:
        model: The built-in name, a Hub id, a folder, a `.gguf` file, or the model itself.
        tokenizer: The tokenizer, if it is in memory.
        trust_remote_code: Run modelling code that comes with the weights.
        options: Passed to `from_pretrained`; `device_map` is "auto" by default.
        tokenizer_options: Passed to the tokenizer's, or set on it.
        former: Former checks of the files that a model in memory was read from.

    Returns:
        The model, its tokenizer, and the former checks of its files; None where it was made in memory.

    Raises:
        UnknownModel: There is no such model.
        Forbidden: Its weights are only there as pickle.
        InvalidRequest: A model that came from nowhere came without its tokenizer.
        Unsupported: It is a module, and no model of transformers.
    """
    if isinstance(model, nn.Module):
        if not isinstance(model, PreTrainedModel):
            raise Unsupported(
                f"a {type(model).__name__} is no model of transformers, and has no layers under standard names.",
                "Trace it with nnsight.NNsight(module).",
            )
        source = str(getattr(model, "name_or_path", ""))
        if tokenizer is None and not source:
            raise InvalidRequest(f"a {type(model).__name__} in memory came without a tokenizer: pass tokenizer=.")
        found = _tokenizer(tokenizer, source, {"trust_remote_code": trust_remote_code}, tokenizer_options)
        fill_padding(found, embedded_ids(model))
        return model.eval(), found, former
    options.pop("dispatch", None)  # nnsight's: to read the weights at once, as happens here
    cache = Settings().cache
    located = locate(str(model), options.pop("revision", None), cache, trust_remote_code, lambda _: None)
    located = convert_once(located, cache, lambda _: None)
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if located.gguf is not None:
        common["gguf_file"] = located.gguf
    options = {"device_map": "auto", "use_safetensors": True} | options
    options.setdefault("config", read_config(located, trust_remote_code))
    former = None if located.gguf else FormerChecks(located.folder, cache)
    with built_within(located.origin, located.folder, located.gguf):
        read: Any = AutoModelForCausalLM.from_pretrained(located.folder, **common, **options)
    found = _tokenizer(tokenizer, located.folder, common, tokenizer_options)
    fill_padding(found, embedded_ids(read))
    read.eval()
    if former is None or former.recall(read, found) is None:
        require_finite_weights(read, located.origin)
    return read, found, former


def _tokenizer(
    given: PreTrainedTokenizerBase | None, source: str | Path, common: Mapping[str, Any], options: Mapping[str, Any]
) -> PreTrainedTokenizerBase:
    if given is None:
        return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(source, **{**common, **options}))
    for key, value in options.items():
        setattr(given, key, value)
    return given
