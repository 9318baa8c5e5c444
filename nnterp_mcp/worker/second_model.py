"""A second model in a worker, with which its own is compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.settings import Settings


def read_second(model: StandardizedTransformer, name: str, settings: Settings) -> StandardizedTransformer:
    """Reads another model next to one, on its device and in its dtype.

    Args:
        model: The model.
        settings: The server's settings.
        name: What `load_model` takes; the server has checked that it may be loaded.

    Raises:
        NnterpError: It cannot be loaded.
    """
    from nnterp_mcp.model.loading.former_checks import FormerChecks
    from nnterp_mcp.model.loading.load import read_model
    from nnterp_mcp.model.loading.locate import convert_once, locate
    from nnterp_mcp.model.loading.weights import Precision
    from nnterp_mcp.model.standardized import StandardizedTransformer

    code = settings.trust_remote_code
    located = locate(name, None, settings.cache, code, _ignore, relative=False)
    located = convert_once(located, settings.cache, _ignore)
    former = None if located.gguf else FormerChecks(located.folder, settings.cache)
    dtype = str(model.computing_dtype).removeprefix("torch.")
    weights, tokenizer = read_model(located, Precision(dtype), str(model.device), "auto", code, _ignore, former)
    return StandardizedTransformer(weights, tokenizer=tokenizer, name=name, former=former)


def copy_of(model: StandardizedTransformer) -> StandardizedTransformer:
    """The same model on the same weights, as modules of their own."""
    from nnterp_mcp.model.loading.shared_copy import share_weights
    from nnterp_mcp.model.standardized import StandardizedTransformer

    shared = share_weights(model.module)
    made = StandardizedTransformer(
        shared, tokenizer=model.tokenizer, name=model.name, alike=model, check_renaming=False
    )
    made.refuse(model.refusals)
    return made


def _ignore(message: str) -> None:
    pass
