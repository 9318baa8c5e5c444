"""The tool `patch_activations`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.patch_activations.answer import digest
from nnterp_mcp.toolset.patch_activations.figure import figure
from nnterp_mcp.toolset.patch_activations.params import PatchActivationsParams

SPEC = ToolSpec(
    name="patch_activations",
    title="Patch activations",
    description=(
        "Find the states that carry an answer by activation or path patching: clean states replace those of corrupted "
        "runs, cell by cell of a grid or for a named set of cells."
    ),
    examples=[
        {
            "clean": "The capital of France is",
            "corrupted": {"replace": "France", "with": "Spain"},
            "targets": {"answer": "Paris", "wrong": "Madrid"},
        },
        {
            "clean": "The capital of France is",
            "corrupted": "The capital of Spain is",
            "targets": {"answer": "Paris", "wrong": "Madrid"},
            "sites": "heads_output",
            "layers": [1],
            "positions": "last",
        },
    ],
    params=PatchActivationsParams,
    digest=digest,
    figure=figure,
    group="causal",
)
