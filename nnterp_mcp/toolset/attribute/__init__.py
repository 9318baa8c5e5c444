"""The tool `attribute`."""
