"""The tool `steer`."""
