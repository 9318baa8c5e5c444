"""The language of interventions a second time: written from its pages, on plain transformers with plain hooks.

Nothing here comes from the engine that the tools use. `python -m tests.interpreter` compares the two on random calls.
"""
