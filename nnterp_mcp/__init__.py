"""nnterp-mcp: an interpretability laboratory for LLM agents."""

__version__ = "0.1.0"
