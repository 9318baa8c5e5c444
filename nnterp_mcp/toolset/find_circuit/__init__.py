"""The tool `find_circuit`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.find_circuit.answer import digest
from nnterp_mcp.toolset.find_circuit.figure import figure
from nnterp_mcp.toolset.find_circuit.params import FindCircuitParams

SPEC = ToolSpec(
    name="find_circuit",
    title="Find a circuit",
    description=(
        "Find the edges between heads (queries, keys and values apart) and MLPs that carry a behaviour: scored by "
        "edge attribution patching with integrated gradients (EAP-IG), then measured by corrupting every edge outside "
        "the circuit, next to random circuits of the same size. A faithful circuit need not be the only one."
    ),
    examples=[
        {
            "clean": "The capital of France is",
            "corrupted": {"replace": "France", "with": "Spain"},
            "targets": {"answer": "Paris", "wrong": "Madrid"},
        },
        {
            "clean": ["The capital of France is", "The capital of Spain is"],
            "corrupted": ["The capital of Spain is", "The capital of France is"],
            "targets": [{"answer": "Paris", "wrong": "Madrid"}, {"answer": "Madrid", "wrong": "Paris"}],
            "edges": 20,
            "steps": 2,
            "draws": 2,
        },
    ],
    params=FindCircuitParams,
    digest=digest,
    figure=figure,
    group="causal",
)
