"""The tool `generate`."""
