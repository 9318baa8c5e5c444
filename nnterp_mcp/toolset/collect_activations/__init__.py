"""The tool `collect_activations`."""
