"""The tool `cancel_run`."""
