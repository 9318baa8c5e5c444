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
        "Find the circuit of a behaviour: edges between heads (queries, keys, values) and MLPs, scored by EAP-IG, "
        "measured with all others corrupted, next to random circuits."
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
