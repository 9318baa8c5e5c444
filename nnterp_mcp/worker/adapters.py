"""Adapters in the worker: a model that shares the weights of another bench's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nnterp_mcp.errors import Unsupported
from nnterp_mcp.request.adapter_folder import CONFIGURATION, WEIGHTS, with_scale
from nnterp_mcp.worker.model_files import ModelFiles, ModelOrigin

if TYPE_CHECKING:
    from nnterp_mcp.model.loading.locations import Located, Report
    from nnterp_mcp.worker.workbench import Bench


def _ignore(message: str) -> None:
    pass


def load_adapter(bench: Bench, located: Located, scale: float, report: Report = _ignore) -> None:
    """Loads an adapter onto the weights of another bench's model.

    Args:
        bench: The bench for the adapted model.
        located: The adapter's files.
        scale: What its change of the weights is multiplied by.
        report: Called with the current step.

    Raises:
        Unsupported: That model is served, and its weights are not here; or the adapter is none that is loaded.
        UnknownModel: The adapter cannot be read, or is one of another base.
    """
    from importlib.metadata import version

    from nnterp_mcp.model.loading.adapters import adapt

    base = bench.base
    assert base is not None
    if base.files is None and base.origin.versions:
        raise Unsupported("an adapter shares the weights of its base, and those of a served model are not here")
    report("reading the adapter")
    model, adapter = adapt(base.model, located.folder, scale, bench.handle)
    files = ModelFiles(located.folder, names=[CONFIGURATION, WEIGHTS], base=base.files)
    versions = dict(base.origin.versions) | {"peft": version("peft")}
    name = with_scale(located.origin, scale)
    origin = ModelOrigin(f"{name} on {base.origin.source}", base.origin.revision, files, versions)
    bench.place(model, origin)
    bench.adapter = replace(adapter, origin=located.origin, revision=located.revision)
