"""Reductions of states and logits, computed where the model is."""
