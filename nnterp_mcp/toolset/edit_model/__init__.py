"""The tool `edit_model`."""
