"""Commands of `nnterp-mcp` that take more than a few lines."""
