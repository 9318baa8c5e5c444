"""Reads a model and its tokenizer from safetensors or GGUF files.

Nothing is filled in: a checkpoint that lacks weights is refused, for transformers would draw them at random.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)

from nnterp_mcp.errors import Forbidden, InvalidRequest, NnterpError, OutOfMemory, UnknownModel, Unsupported, is_panic
from nnterp_mcp.formatting import size
from nnterp_mcp.model import memory
from nnterp_mcp.model.loading.build_limits import built_within
from nnterp_mcp.model.loading.finite_weights import require_finite_weights
from nnterp_mcp.model.loading.former_checks import FormerChecks
from nnterp_mcp.model.loading.locations import Located, Report
from nnterp_mcp.model.loading.weights import Precision, fit, quantize
from nnterp_mcp.model.text.tokens import embedded_ids, fill_padding
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.model_folder import refuse_encoder


def read_model(
    located: Located,
    precision: Precision,
    device: str,
    attention: str,
    code: bool,
    report: Report,
    former: FormerChecks | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Reads a model and its tokenizer.

    Args:
        located: Where they are.
        precision: The dtype and quantization of the weights.
        device: `auto` or a torch device.
        attention: `auto`, `sdpa` or `eager`.
        code: True if the model's own code may run.
        report: Told what is being done.
        former: Former checks of the files: weights that were found finite are not looked through again.

    Returns:
        The transformers model in evaluation mode, and its tokenizer.

    Raises:
        UnknownModel: The files hold no complete model, or numbers that are not finite.
        Unsupported: transformers cannot build it, or the quantization library is missing.
        Forbidden: It needs its own code, which may not run.
        OutOfMemory: It would not fit.
    """
    with _explained(located, code):
        report("reading the configuration")
        gguf = {} if located.gguf is None else {"gguf_file": located.gguf}
        config = read_config(located, code)
        target = place(device)
        dtype = precision.type_on(target, config)
        options: dict[str, Any] = {
            "dtype": dtype,
            "attn_implementation": None if attention == "auto" else attention,
        }
        if precision.quantization is not None:
            options["quantization_config"] = quantize(precision.quantization, dtype)
        if located.gguf is None:
            need = memory.of_weights(located.folder, dtype, precision.quantization)
        else:
            need = memory.of_numbers(_count_weights(located, config, code), dtype, precision.quantization)
        options["device_map"] = fit(need, target, located.origin)
        report("reading the weights" + (f" ({size(need)})" if need else ""))
        with built_within(located.origin, located.folder, located.gguf):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                located.folder,
                config=config,
                trust_remote_code=code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are refused below, with their sizes
                output_loading_info=True,
                **gguf,
                **options,
            )
        model, info = loaded
        _require_complete(type(model).__name__, info, located.origin)
        tokenizer = _read_tokenizer(located, code, gguf)
        fill_padding(tokenizer, embedded_ids(model))
        model.eval().requires_grad_(False)
        if former is None or former.recall(model, tokenizer) is None:
            require_finite_weights(model, located.origin)
    return model, tokenizer


def _count_weights(located: Located, config: Any, code: bool) -> int:
    """The numbers of the model that a configuration describes, built without memory for them."""
    with built_within(located.origin, located.folder, located.gguf), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=code)
    return sum(weight.numel() for weight in model.parameters())


def _require_complete(kind: str, info: dict[str, Any], origin: str) -> None:
    """Refuses weights that do not fill a model: transformers draws what is missing at random."""
    for name, stored, wanted in sorted(info["mismatched_keys"])[:1]:
        raise UnknownModel(
            f"{name} of {origin} has the shape {tuple(stored)}, and its configuration asks for {tuple(wanted)}",
            "Give the configuration that belongs to the weights.",
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UnknownModel(
            f"{origin} lacks {len(missing)} of the weights that {kind} needs "
            f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}), and they would be random",
            "Load a checkpoint that was saved as a causal language model.",
        )


def read_config(located: Located, code: bool) -> Any:
    """Reads a model's configuration, without a padding token that the model does not embed.

    Raises:
        Unsupported: transformers has no causal language model of its type.
    """
    gguf = {} if located.gguf is None else {"gguf_file": located.gguf}
    config = AutoConfig.from_pretrained(located.folder, trust_remote_code=code, **gguf)
    refuse_encoder(located.origin, config.to_dict())
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not hasattr(config, "auto_map"):
        raise Unsupported(
            f"{located.origin} is of type {shown(config.model_type)}, of which transformers "
            f"{transformers.__version__} has no causal language model",
            "Load a model that was saved as a causal language model.",
        )
    for part in {id(part): part for part in (config, config.get_text_config(decoder=True))}.values():
        padding, embedded = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if isinstance(padding, int) and isinstance(embedded, int) and padding >= embedded:
            part.pad_token_id = None
    return config


def place(device: str) -> torch.device:
    """The device of a name: `auto` is the accelerator if there is one, else the CPU.

    Raises:
        InvalidRequest: The name is no device, or this machine has none of the kind.
    """
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen).tolist()  # the meta device computes nothing
    except (RuntimeError, AssertionError):
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        count = torch.accelerator.device_count() if accelerator else 0
        known = ["auto", "cpu"] + [f"{accelerator}:{index}" for index in range(count)]
        raise InvalidRequest(f"device {shown(device)} is not available: choose one of {', '.join(known)}.") from None
    return chosen


def _read_tokenizer(located: Located, code: bool, gguf: dict[str, str]) -> Any:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(located.folder, trust_remote_code=code, **gguf)
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise UnknownModel(
            f"{located.origin} has no tokenizer that can be read ({type(error).__name__}: {_first_line(error)})",
            "Save the tokenizer beside the model.",
        ) from error
    return tokenizer


@contextmanager
def _explained(located: Located, code: bool) -> Generator[None]:
    try:
        yield
    except NnterpError:
        raise
    except Exception as error:
        if memory.is_out_of_memory(error):
            raise OutOfMemory(
                f"the weights of {located.origin} did not fit", "Choose a smaller dtype or model."
            ) from error
        text = _first_line(error)
        if not code and "trust_remote_code" in str(error):
            raise Forbidden(
                f"{located.origin} needs code of its own to run, which this server does not allow",
                "Whoever starts the server can allow it with --trust-remote-code.",
                "Allow it with --trust-remote-code.",
            ) from error
        if isinstance(error, ValueError | KeyError | ImportError | AttributeError):
            raise Unsupported(
                f"transformers {transformers.__version__} cannot load {located.origin}: {text}"
            ) from error
        raise UnknownModel(f"{located.origin} could not be read: {text}") from error


def _first_line(error: BaseException) -> str:
    said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(said[: 2 if said[0].endswith(":") else 1])[:200]
