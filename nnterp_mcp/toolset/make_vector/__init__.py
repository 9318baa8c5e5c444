"""The tool `make_vector`."""
