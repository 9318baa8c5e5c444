"""The tool `inspect_model`."""
