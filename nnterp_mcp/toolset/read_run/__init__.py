"""The tool `read_run`."""
