"""Interpretability experiments, written against the engine."""
