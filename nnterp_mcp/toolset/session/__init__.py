"""The tool `session`."""
