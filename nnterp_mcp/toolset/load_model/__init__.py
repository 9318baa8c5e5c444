"""The tool `load_model`."""
