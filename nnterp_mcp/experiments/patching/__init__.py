"""Activation patching, path patching and their controls."""
