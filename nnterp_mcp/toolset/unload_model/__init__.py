"""The tool `unload_model`."""
