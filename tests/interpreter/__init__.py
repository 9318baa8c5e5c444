"""The language of interventions a second time: written from its pages, on plain transformers with plain hooks.

Nothing here comes from the engine that the tools use. `python -m tests.interpreter` compares the two on random calls.
"""

from importlib import import_module

# Before nnsight, whose `.save` on every object breaks classes that are built later.
import_module("mcp.client.stdio")
