"""Prepares a recorded call to be run again: the model's parameters, the call's, and its vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.request.adapter_folder import pinned
from nnterp_mcp.request.dictionaries import ROW_METHODS, DictionaryCard
from nnterp_mcp.request.vectors import VectorCard
from nnterp_mcp.runs.dictionaries import DictionaryStore
from nnterp_mcp.runs.records import RunRecord
from nnterp_mcp.runs.vectors import VectorStore
from nnterp_mcp.toolset import specs

_VECTOR_FIELDS = ("vector", "other", "along", "source_vectors", "probe")
"""Parameters that name vectors, at any depth."""


@dataclass(frozen=True)
class Rerun:
    """A recorded call that can be made again.

    Attributes:
        record: Its record.
        spec: The tool.
        arguments: The call's arguments, without the model's handle.
        loading: The parameters of `load_model`, with the revision and dtype that were resolved.
        vectors: The named vectors that it used, as they are now.
        replaced: Those of them that were made anew after the run, so that their numbers may differ.
        dictionaries: The loaded dictionaries of features that it used.
    """

    record: RunRecord
    spec: ToolSpec[Any, Any, Any]
    arguments: dict[str, Any]
    loading: dict[str, Any]
    vectors: list[VectorCard]
    replaced: list[str]
    dictionaries: list[DictionaryCard]


def prepare_rerun(record: RunRecord, data: Path) -> Rerun:
    """Finds what is needed to run a call again.

    Args:
        record: The run.
        data: The folder of the named vectors and of the loaded dictionaries.

    Raises:
        InvalidRequest: The run did not finish, or only deleted something; this version does not know the tool or its
            parameters; or a vector or a dictionary that it used is gone.
    """
    spec = _require_finished(record)
    arguments = {name: value for name, value in record.params.items() if name != "model"}
    spec.parse(arguments)
    store = VectorStore(data / "vectors")
    vectors = [_find_vector(name, record, store) for name in dict.fromkeys(_named_vectors(arguments))]
    used = [
        name for request in (arguments, *(card.request for card in vectors)) for name in _named_dictionaries(request)
    ]
    return Rerun(
        record=record,
        spec=spec,
        arguments=arguments,
        loading=_loading(record),
        vectors=vectors,
        replaced=[card.name for card in vectors if record.ended is not None and card.made > record.ended],
        dictionaries=[
            _find_dictionary(name, record, DictionaryStore(data / "dictionaries")) for name in dict.fromkeys(used)
        ],
    )


def _require_finished(record: RunRecord) -> ToolSpec[Any, Any, Any]:
    if record.state != "done" or record.partial:
        why = f" ({record.error.code}: {record.error.message})" if record.error is not None else ""
        kept = ", with a part of its result" if record.partial else ""
        raise InvalidRequest(
            f"{record.id} is {record.state}{kept}{why}: only a run that is done can be run again and compared.",
            f"nnterp-mcp runs show {record.id} says what it has; call {record.tool} again for a whole one.",
        )
    spec = specs().get(record.tool)
    if spec is None:
        raise InvalidRequest(f"{record.id} is a run of {record.tool}, a tool that this version does not have.")
    if record.params.get("method") == "delete":
        raise InvalidRequest(f"{record.id} deleted a vector: there is nothing in it to compute again.")
    return spec


def _loading(record: RunRecord) -> dict[str, Any]:
    """The load request with the dtype and commit that were resolved then, independent of time and machine.

    A service decides both itself, so that the request for a served model stays as it was.
    """
    request, environment = dict(record.request), record.environment
    if environment is None or request.get("backend", "local") != "local":
        return request
    if request.get("dtype") == "auto" and request.get("quantization") is None:
        request["dtype"] = environment.dtype
    if request.get("adapter") is not None:
        request["adapter"] = pinned(request["adapter"], environment.adapter_revision)
    return request | ({"revision": environment.revision} if environment.revision is not None else {})


def _named_vectors(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, part in value.items():
            if name in _VECTOR_FIELDS and isinstance(part, str):
                yield part
            elif name in _VECTOR_FIELDS and isinstance(part, list):
                yield from (item for item in part if isinstance(item, str))
            else:
                yield from _named_vectors(part)
    elif isinstance(value, list):
        for part in value:
            yield from _named_vectors(part)


def _named_dictionaries(value: Any) -> Iterator[str]:
    """The dictionaries that a request names, at any depth, and the one of whose rows a vector is made."""
    if isinstance(value, dict):
        if value.get("method") in ROW_METHODS:
            yield str(value["positive"][0]).partition(":")[0]
        for name, part in value.items():
            if name == "dictionary" and isinstance(part, str):
                yield part
            else:
                yield from _named_dictionaries(part)
    elif isinstance(value, list):
        for part in value:
            yield from _named_dictionaries(part)


def _find_dictionary(name: str, record: RunRecord, store: DictionaryStore) -> DictionaryCard:
    environment = record.environment
    for card in store.cards():
        if card.name == name and environment is not None and card.identity.fingerprint == environment.fingerprint:
            return card
    raise InvalidRequest(
        f"{record.id} used the dictionary {name!r} of {record.model}, and that is gone.",
        "Load it again with load_features, or say with --data where dictionaries are listed.",
    )


def _find_vector(name: str, record: RunRecord, store: VectorStore) -> VectorCard:
    environment = record.environment
    for card in store.cards():
        if card.name == name and environment is not None and card.identity.fingerprint == environment.fingerprint:
            return card
    raise InvalidRequest(
        f"{record.id} used the vector {name!r} of {record.model}, and that is gone.",
        "Make it again under that name, or say with --data where vectors are kept.",
    )
