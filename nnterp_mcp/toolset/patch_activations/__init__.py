"""The tool `patch_activations`."""
