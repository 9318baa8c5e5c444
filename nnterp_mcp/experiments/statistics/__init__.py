"""Intervals, separability and geometry."""
