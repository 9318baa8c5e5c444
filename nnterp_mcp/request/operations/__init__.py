"""The language of interventions: what an operation on a running model says, before any model is known.

Every tool that runs a forward pass takes a list of these, and so does the library (`engine/planning/plan.py` resolves
them against a model). They act in the order in which the model runs; at one and the same place a skip first, knockouts
last, and all others in the order listed.
"""

from nnterp_mcp.request.operations.kinds import (
    OPERATIONS,
    Add,
    EditFeatures,
    Knockout,
    Mean,
    Operation,
    Patch,
    ProjectOut,
    Scale,
    SetAttention,
    Skip,
    StateOperation,
    Swap,
    Zero,
    site_of,
)
from nnterp_mcp.request.operations.operands import (
    Heads,
    IndexSpec,
    Matrix,
    Neurons,
    Pattern,
    PromptIndices,
    Source,
    Steps,
    TokenDifference,
    Vector,
)
from nnterp_mcp.request.operations.request import DescribedInterventions, Interventions, parse_operation
from nnterp_mcp.request.operations.wording import describe, describe_positions, label_of

__all__ = [
    "OPERATIONS",
    "Add",
    "DescribedInterventions",
    "EditFeatures",
    "Heads",
    "IndexSpec",
    "Interventions",
    "Knockout",
    "Matrix",
    "Mean",
    "Neurons",
    "Operation",
    "Patch",
    "Pattern",
    "ProjectOut",
    "PromptIndices",
    "Scale",
    "SetAttention",
    "Skip",
    "Source",
    "StateOperation",
    "Steps",
    "Swap",
    "TokenDifference",
    "Vector",
    "Zero",
    "describe",
    "describe_positions",
    "label_of",
    "parse_operation",
    "site_of",
]
