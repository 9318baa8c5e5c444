"""From a name to a model that NDIF serves: its configuration and tokenizer come here, its weights do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from nnterp_mcp.engine.executors.ndif.checks import check_served
from nnterp_mcp.engine.executors.ndif.client import Connection
from nnterp_mcp.engine.executors.ndif.experiments import EXPERIMENTS
from nnterp_mcp.engine.executors.ndif.meta_model import build_outline
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer, wrap_for_wire
from nnterp_mcp.errors import UnknownModel, Unsupported
from nnterp_mcp.model.loading.load import read_config
from nnterp_mcp.model.loading.locate import BUILTIN_HUB_ID, locate_builtin
from nnterp_mcp.model.loading.locations import BUILTIN, Located, Report, locate_local, locate_on_hub
from nnterp_mcp.model.text.tokens import fill_padding
from nnterp_mcp.request.model_folder import require_readable

_FITTING = ("nnsight",)
"""Packages whose versions must agree in their first two numbers: what is sent is made of their own objects."""


@dataclass(frozen=True)
class Service:
    """Where models are served, and who asks.

    Attributes:
        host: The address.
        secret: The API key; never shown.
    """

    host: str
    secret: str = ""

    def __repr__(self) -> str:
        return f"Service({self.host!r})"


@dataclass(frozen=True)
class Served:
    """A model that was found, with where it came from.

    Attributes:
        model: The model.
        located: Where its configuration and tokenizer are.
        versions: What it is computed with there.
    """

    model: ServedTransformer
    located: Located
    versions: dict[str, str]


def load_served(
    source: str, revision: str | None, name: str, service: Service, cache: Path, code: bool, report: Report
) -> Served:
    """Builds a model's outline, and checks it on the served model, which NDIF may have to deploy first.

    Args:
        source: A Hub id, the built-in name, or a folder that the service reads under the same path.
        revision: Branch, tag or commit on the Hub.
        name: What errors and cards call the model.
        service: Where it is served.
        cache: Where converted weights are kept; the built-in model's tokenizer is read there.
        code: Whether the model's own code may run here and there.
        report: Told what is being done.

    Raises:
        UnknownModel: There is no such model, or the service does not serve it.
        Unsupported: The versions do not fit, or transformers cannot build the outline.
        WorkerLost: The service cannot be reached.
        Forbidden: It refuses the key.
    """
    report(f"asking NDIF at {service.host}")
    located = _locate(source, revision, cache, code, report)
    require_readable(located.origin, located.folder, located.gguf)
    tokenizer: Any = AutoTokenizer.from_pretrained(located.folder, trust_remote_code=code)
    config = read_config(located, code)
    fill_padding(tokenizer, getattr(config.get_text_config(decoder=True), "vocab_size", None))
    served = BUILTIN_HUB_ID if source == BUILTIN else source
    wire = wrap_for_wire(str(located.folder), tokenizer, revision, code)
    connection = Connection(service.host, name, wire, _key(wire, served), service.secret, say=report)
    versions = _require_versions(connection)
    report("building the outline")
    model = ServedTransformer(build_outline(config, code), tokenizer, connection, EXPERIMENTS)
    report("checking the served model")
    model.checks = check_served(model)
    return Served(model, located, versions)


def _locate(source: str, revision: str | None, cache: Path, code: bool, report: Report) -> Located:
    """Finds a model's configuration and tokenizer; no weights are downloaded."""
    if source == BUILTIN:
        return locate_builtin(cache, report)
    folder = Path(source)
    if not folder.is_absolute():
        return locate_on_hub(source, revision, code, report, weights=False)
    if not folder.is_dir():
        raise UnknownModel(f"{source} is no folder", "NDIF serves Hub ids, or folders that it can read itself.")
    return locate_local(folder)


def _key(wire: Any, served: str) -> str:
    """The name under which the service knows a model: nnsight's class, the id and what else tells deployments apart."""
    import nnsight.modeling.huggingface as huggingface

    # nnsight would ask the Hub for the spelling of the id; a folder of one's own service is spelt as it is.
    huggingface._ID_CACHE[wire.repo_id] = served  # pyright: ignore[reportPrivateUsage]
    return wire.to_model_key()


def _require_versions(connection: Connection) -> dict[str, str]:
    """The versions of the libraries that the service runs.

    Raises:
        Unsupported: It is of another generation than what is installed here.
    """
    from importlib.metadata import version

    told = connection.environment()
    packages: dict[str, str] = told.get("packages", {})
    for package in _FITTING:
        theirs, ours = packages.get(package, ""), version(package)
        if theirs and theirs.split(".")[:2] != ours.split(".")[:2]:
            raise Unsupported(
                f"NDIF at {connection.host} runs {package} {theirs}, and this server {ours}: what is sent "
                "would not be understood",
                f"Install {package} {theirs} beside this server, or load the model with backend 'local'.",
            )
    wanted = ("nnsight", "torch", "transformers")
    python = str(told.get("python_version", "")).split(" ")[0]
    return ({"ndif-python": python} if python else {}) | {
        f"ndif-{name}": packages[name] for name in wanted if name in packages
    }
