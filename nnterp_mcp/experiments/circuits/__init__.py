"""Circuits: edges between attention heads and MLPs, scored by gradients and patched for real."""
