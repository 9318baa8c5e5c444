"""Each tool's finding, read back and recomputed from what its run stored, with plain numpy and nothing of the tools."""
