"""Other models in a worker, with which its own are compared: read once, and kept until they are unloaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nnterp_mcp.request.access import admit_adapter, admit_model
from nnterp_mcp.request.adapter_folder import split_scale

if TYPE_CHECKING:
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.settings import Settings

_OF_WEIGHTS = ("model", "revision", "quantization")
"""Parameters of `load_model` that say which weights are loaded; all are read in the dtype of the worker's own."""

_Key = tuple[Any, ...]


class SecondModels:
    """The models of other workers that this one compares with, next to its own.

    Args:
        settings: The server's settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._requests: dict[str, dict[str, Any]] = {}
        self._wholes: dict[_Key, StandardizedTransformer] = {}
        self._found: dict[str, StandardizedTransformer] = {}

    @property
    def held(self) -> dict[str, int]:
        """The bytes of weights that were read, by handle; 0 for a handle whose weights an earlier one has."""
        sizes = {key: model.held_bytes for key, model in list(self._wholes.items())}
        keys = {handle: _key(request) for handle, request in list(self._requests.items())}
        return {handle: sizes.pop(key, 0) for handle, key in keys.items() if key in self._wholes}

    def learn(self, requests: Mapping[str, Mapping[str, Any]]) -> None:
        """Notes the parameters of `load_model` behind handles of other models; nothing is read yet."""
        self._requests |= {handle: dict(request) for handle, request in requests.items()}

    def forget(self, handle: str) -> None:
        """Drops a model that was unloaded, and weights that no other handle needs."""
        self._requests.pop(handle, None)
        self._found.pop(handle, None)
        needed = {_key(request) for request in self._requests.values()}
        self._wholes = {key: model for key, model in self._wholes.items() if key in needed}

    def find(self, handle: str, own: StandardizedTransformer, request: Mapping[str, Any]) -> StandardizedTransformer:
        """The model behind a handle.

        Args:
            handle: The handle, or a name that `load_model` takes.
            own: The worker's own model, on whose device and in whose dtype others are read.
            request: The parameters with which it was loaded: an adapter on the same weights shares them.

        Raises:
            NnterpError: It cannot be loaded.
        """
        if handle not in self._found:
            asked = self._requests.setdefault(handle, {"model": handle})
            shared = _key(asked) == _key(request)
            whole = own if shared else self._read(asked, own, handle)
            if asked.get("adapter") is not None:
                self._found[handle] = self._adapt(whole, asked["adapter"], handle)
            else:
                self._found[handle] = copy_of(own) if shared else whole
        return self._found[handle]

    def _adapt(self, whole: StandardizedTransformer, adapter: str, handle: str) -> StandardizedTransformer:
        from nnterp_mcp.model.loading.adapter_files import locate_adapter
        from nnterp_mcp.model.loading.adapters import adapt

        admitted = admit_adapter(adapter, self._settings.allowed_models, self._settings.folders)
        source, scale = split_scale(admitted)
        return adapt(whole, locate_adapter(source, _ignore).folder, scale, handle)[0]

    def _read(self, asked: Mapping[str, Any], own: StandardizedTransformer, handle: str) -> StandardizedTransformer:
        from nnterp_mcp.model.loading.former_checks import FormerChecks
        from nnterp_mcp.model.loading.load import read_model
        from nnterp_mcp.model.loading.locate import convert_once, locate
        from nnterp_mcp.model.loading.weights import Precision
        from nnterp_mcp.model.standardized import StandardizedTransformer

        key = _key(asked)
        if key not in self._wholes:
            settings, code = self._settings, self._settings.trust_remote_code
            source = admit_model(asked["model"], settings.allowed_models, settings.folders)
            located = locate(source, asked.get("revision"), settings.cache, code, _ignore, relative=False)
            located = convert_once(located, settings.cache, _ignore)
            former = None if located.gguf else FormerChecks(located.folder, settings.cache)
            precision = Precision(str(own.computing_dtype).removeprefix("torch."), asked.get("quantization"))
            weights, tokenizer = read_model(located, precision, str(own.device), "auto", code, _ignore, former)
            name = handle if asked.get("adapter") is None else asked["model"]
            self._wholes[key] = StandardizedTransformer(weights, tokenizer=tokenizer, name=name, former=former)
        return self._wholes[key]


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


def _key(request: Mapping[str, Any]) -> _Key:
    return tuple(request.get(name) for name in _OF_WEIGHTS)


def _ignore(message: str) -> None:
    pass
